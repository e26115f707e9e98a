"""`rahf validate`: every problem of a recipe at once, or every value that holds."""

import argparse
import sys

from rahf.commands.options.parsers import recipe_command


def add(commands) -> None:
    recipe_command(
        commands, "validate", "print every problem of a recipe, or every value that holds", run
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.comparison.row_recipes import check_given_comparison
    from rahf.recipe.files import checked_recipe
    from rahf.recipe.recipe import RecipeError
    from rahf.recipe.summary import summary, values_that_hold

    try:
        recipe = checked_recipe(options.recipe, overrides, check_given_comparison)
    except RecipeError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    print(f"ok: {options.recipe}\n{summary(recipe)}\n\n{values_that_hold(recipe)}")
    return 0
