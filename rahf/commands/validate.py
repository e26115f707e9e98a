"""`rahf validate`: every problem of a recipe at once, or every effective value."""

import argparse
import json
import sys


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print problems, or every value, as JSON"
    )


def run(options: argparse.Namespace) -> int:
    from rahf.comparison.row_recipes import check_given_comparison
    from rahf.recipe.files import checked_recipe
    from rahf.recipe.recipe import RecipeError
    from rahf.recipe.summary import as_figures, summary, values_that_hold

    try:
        recipe = checked_recipe(options.recipe, options.overrides, check_given_comparison)
    except RecipeError as error:
        if options.json:
            _print_json(options, {"valid": False, "problems": error.problems})
            return 1
        print(f"{error}", file=sys.stderr)
        return 1
    if options.json:
        _print_json(options, {"valid": True, "problems": [], **as_figures(recipe)})
        return 0
    print(f"ok: {options.recipe}\n{summary(recipe)}\n\n{values_that_hold(recipe)}")
    return 0


def _print_json(options: argparse.Namespace, figures: dict) -> None:
    print(json.dumps({"recipe": str(options.recipe), **figures}, indent=2, default=str))
