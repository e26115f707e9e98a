"""Preference pairs from their source to batches of token ids. Knows no method, no model."""
