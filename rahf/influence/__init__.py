"""Influence of single training pairs on what a trained adapter does."""
