"""Token shift between a base and an aligned model, and features: sparse dictionaries."""
