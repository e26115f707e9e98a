"""`rahf align`: run the stages of a recipe."""

import argparse

from rahf.commands.parsers import recipe_command


def add(commands, *, with_keys: bool) -> None:
    """Add the command; `with_keys`: its help ends with every key of a recipe."""
    summary = "run the stages of a recipe that are not done yet"
    parser = recipe_command(commands, "align", summary, run, options=" [--stage NAME]")
    parser.add_argument("--stage", metavar="NAME", help="run this stage alone")
    if with_keys:
        from rahf.recipe.reference import as_text

        parser.epilog = f"{parser.epilog}\n\n{as_text()}"


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.validation import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    from rahf.pipeline import run_pipeline

    run_pipeline(recipe, stage=options.stage)
    return 0
