"""`rahf validate`: every problem of a recipe at once, or every value that holds."""

import argparse
import sys


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the recipe and its overrides are all there is."""


def run(options: argparse.Namespace) -> int:
    from rahf.comparison.row_recipes import check_given_comparison
    from rahf.recipe.files import checked_recipe
    from rahf.recipe.recipe import RecipeError
    from rahf.recipe.summary import summary, values_that_hold

    try:
        recipe = checked_recipe(options.recipe, options.overrides, check_given_comparison)
    except RecipeError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    print(f"ok: {options.recipe}\n{summary(recipe)}\n\n{values_that_hold(recipe)}")
    return 0
