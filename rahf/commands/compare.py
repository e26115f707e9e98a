"""`rahf compare`: methods side by side on a recipe's model and pairs."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "rahf compare RECIPE.yaml [--only ROW,...] [--KEY VALUE ...]"
    parser.add_argument(
        "--only",
        metavar="ROW,...",
        type=lambda given: given.split(","),
        default=(),
        help="train and measure only these rows, without a table; other processes may do others",
    )


def run(options: argparse.Namespace) -> int:
    from rahf.comparison.row_recipes import check_comparison
    from rahf.recipe.files import checked_recipe

    recipe = checked_recipe(options.recipe, options.overrides, check_comparison)
    from rahf.comparison.run import compare
    from rahf.distributed.sigterm import handling_sigterm, leave

    with handling_sigterm(leave):
        compare(recipe, options.only)
    return 0
