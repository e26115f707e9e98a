"""`rahf validate`: every problem of a recipe at once."""

import argparse
import sys


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the recipe and its overrides are all there is."""


def run(options: argparse.Namespace) -> int:
    from rahf.comparison.row_recipes import check_given_comparison
    from rahf.recipe.files import checked_recipe, summary
    from rahf.recipe.recipe import RecipeError

    try:
        recipe = checked_recipe(options.recipe, options.overrides, check_given_comparison)
    except RecipeError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    print(f"ok: {options.recipe}\n{summary(recipe)}")
    return 0
