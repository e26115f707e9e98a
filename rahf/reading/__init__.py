"""Reading directions from a model: contrasting states in, one vector per layer out."""
