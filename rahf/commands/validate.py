"""`rahf validate`: every problem of a recipe at once."""

import argparse
import sys

from rahf.commands.options.parsers import recipe_command


def add(commands) -> None:
    recipe_command(commands, "validate", "tell every problem of a recipe, without running it", run)


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.comparison.row_recipes import check_given_comparison
    from rahf.recipe.files import checked_recipe, summary
    from rahf.recipe.recipe import RecipeError

    try:
        recipe = checked_recipe(options.recipe, overrides, check_given_comparison)
    except RecipeError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    print(f"ok: {options.recipe}\n{summary(recipe)}")
    return 0
