"""Recipes without torch: options and their checks, YAML and overrides, files named, reference
text.
"""
