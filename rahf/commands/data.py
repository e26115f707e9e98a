"""`rahf data` and `rahf prepare`: a recipe's data, shown or tokenised into the cache."""

import argparse

from rahf.commands.options.parsers import recipe_command


def add(commands) -> None:
    recipe_command(
        commands, "data", "show what a recipe's data becomes: counts, lengths, rows", run_data
    )
    recipe_command(
        commands,
        "prepare",
        "tokenise a recipe's data into the cache, nothing else",
        run_prepare,
    )


def run_data(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.files import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    from rahf.pipeline.run import describe_data

    print(describe_data(recipe))
    return 0


def run_prepare(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.files import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    from rahf.pipeline.prepare import prepare

    print(prepare(recipe))
    return 0
