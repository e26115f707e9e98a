"""One page of what output folders hold: files in, one HTML file out."""
