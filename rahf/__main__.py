"""`python -m rahf` is the command `rahf`."""

from rahf.cli import run

run()
