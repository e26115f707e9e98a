"""`rahf compare`: methods side by side on a recipe's model and pairs."""

import argparse

from rahf.commands.parsers import recipe_command


def add(commands) -> None:
    summary = "train and measure base, URIAL, SFT, DPO, LoRRA, SCIT and DUAL side by side"
    recipe_command(commands, "compare", summary, run)


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.comparing import check_comparison
    from rahf.recipe.validation import checked_recipe

    recipe = checked_recipe(options.recipe, overrides, check_comparison)
    from rahf.comparison.run import compare
    from rahf.termination import handling_sigterm, leave

    with handling_sigterm(leave):
        compare(recipe)
    return 0
