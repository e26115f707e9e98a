"""What a recipe will cost, told before it is run: sizes, work, memory. Loads no weights."""
