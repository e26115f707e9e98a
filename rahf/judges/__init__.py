"""Judges of responses behind one protocol: rules, local models, any OpenAI-compatible URL."""
