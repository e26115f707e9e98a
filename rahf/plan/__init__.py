"""What a recipe costs: sizes, work and memory, computed without weights."""
