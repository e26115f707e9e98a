"""Adapters and directions in the forms that other programs load, and their upload."""
