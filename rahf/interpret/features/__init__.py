"""Features: sparse dictionaries of hidden states, and what they show of a direction or a model."""
