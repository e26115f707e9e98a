"""`rahf recipes copy`: a shipped recipe and the data that it names, in the current folder."""

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The files keep their places, recipes/..., since a recipe names its data from the current\n"
        "folder. A file that is there with other content is not replaced."
    )
    parser.add_argument("name", metavar="NAME", help="name as rahf recipes list prints it")


def run(options: argparse.Namespace) -> int:
    from rahf.recipe.shipped import copy_recipe

    copied = copy_recipe(options.name, Path())
    for path in copied.new:
        print(f"wrote {path}")
    print(f"next: rahf validate {copied.recipe}")
    return 0
