"""Training of adapters: the shared trainer, checkpoints, teachers, baselines by TRL."""
