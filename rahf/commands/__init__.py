"""The commands of `rahf`, one module each: its options, and the call of what it does.

A module here imports nothing but the standard library and `parsers` at its top; what a command
does is imported when it runs, so that `--help` and `rahf validate` come without torch.
"""
