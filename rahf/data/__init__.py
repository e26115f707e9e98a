"""Preference pairs from where they lie to batches of token ids. Knows no method, no model."""
