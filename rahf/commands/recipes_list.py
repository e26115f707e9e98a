"""`rahf recipes list`: the recipes that ship with the package."""

import argparse
import textwrap


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: there is only one list."""


def run(_options: argparse.Namespace) -> int:
    from rahf.recipe.shipped import shipped_recipes, title_of

    recipes = shipped_recipes()
    width = max(map(len, recipes))
    for name, path in recipes.items():
        first, rest = f"{name.ljust(width)}  ", " " * (width + 2)
        print(textwrap.fill(title_of(path), 96, initial_indent=first, subsequent_indent=rest))
    print("\nrahf recipes copy NAME copies a recipe and its data into the current folder")
    return 0
