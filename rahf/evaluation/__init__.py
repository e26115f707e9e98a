"""What an alignment did: preferences, answers and general ability, measured on held-out data."""
