"""One-sentence explanations of features and directions, and scores that can prove them wrong."""
