"""Methods side by side on one recipe: equal trials, several seeds, the same measures."""
