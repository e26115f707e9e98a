"""What an alignment did: preferences, answers and general ability on held-out data."""
