"""Records of results: what they were made with, and by which command."""
