"""The commands of `rahf`, one module each: its options, and the call of what it does."""
