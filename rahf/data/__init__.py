"""Preference pairs from where they lie to rows of ids: sources, formats, templates, tokens,
report.
"""
