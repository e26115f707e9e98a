"""`rahf compare`: methods side by side on a recipe's model and pairs."""

import argparse
from contextlib import nullcontext


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
    from rahf.artifacts import alone
    from rahf.comparison.run import compare
    from rahf.distributed.sigterm import handling_sigterm, leave

    folder = recipe.output_dir / "compare"
    with (
        handling_sigterm(leave),
        # Parts are made by several processes at once, the whole and its tables by one.
        nullcontext() if options.only else alone(folder, wait=False),
    ):
        compare(recipe, options.only)
    return 0
