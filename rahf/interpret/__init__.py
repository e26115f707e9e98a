"""What changed between a base and an aligned model, and how it can be read."""
