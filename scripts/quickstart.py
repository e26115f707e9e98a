"""`rahf quickstart` from a clone, as `make quickstart` runs it."""

from rahf.cli import run

if __name__ == "__main__":
    run(["quickstart"])
