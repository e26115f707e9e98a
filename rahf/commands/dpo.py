"""`rahf dpo`: DPO on a recipe's data and model, as a baseline."""

import argparse
from pathlib import Path

from rahf.comparison.row_recipes import BETA


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "rahf dpo RECIPE.yaml [--beta B] [--output FOLDER] [--KEY VALUE ...]"
    option = parser.add_argument
    option(
        "--beta",
        metavar="B",
        type="positive number",
        default=BETA,
        help=f"strength of DPO's tie to the reference (default: {BETA})",
    )
    option(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="folder of the adapter (default: dpo in output_dir)",
    )


def run(recipe, options: argparse.Namespace) -> int:
    from rahf.distributed.sigterm import handling_sigterm, leave
    from rahf.pipeline.dpo_baseline import run_dpo
    from rahf.pipeline.stages import output_of_one_run

    folder = options.output or recipe.output_dir / "dpo"
    cpu = recipe.training.get("use_cpu", False)
    with handling_sigterm(leave), output_of_one_run(folder, cpu):
        run_dpo(recipe, options.beta, folder)
    return 0
