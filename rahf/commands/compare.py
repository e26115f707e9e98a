"""`rahf compare`: methods side by side on a recipe's model and pairs."""

import argparse

from rahf.commands.options.parsers import recipe_command


def add(commands) -> None:
    summary = "train and measure base, URIAL, SFT, DPO, LoRRA, SCIT and DUAL side by side"
    parser = recipe_command(commands, "compare", summary, run, options=" [--only ROW,...]")
    parser.add_argument(
        "--only",
        metavar="ROW,...",
        type=lambda given: given.split(","),
        default=(),
        help="train and measure these rows alone, without a table: other processes may do others",
    )


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.comparison.row_recipes import check_comparison
    from rahf.recipe.files import checked_recipe

    recipe = checked_recipe(options.recipe, overrides, check_comparison)
    from rahf.comparison.run import compare
    from rahf.distributed.sigterm import handling_sigterm, leave

    with handling_sigterm(leave):
        compare(recipe, options.only)
    return 0
