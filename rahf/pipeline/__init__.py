"""A recipe's stages: what each reads, runs and leaves; resumable."""
