"""Recipes: the options and their checks, the table of methods, YAML. Imports no torch."""
