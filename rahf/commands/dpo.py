"""`rahf dpo`: DPO on a recipe's data and model, as a baseline."""

import argparse
from pathlib import Path

from rahf.commands.options.parsers import recipe_command


def add(commands) -> None:
    summary = "train the baseline DPO (TRL) on a recipe's pairs, model and LoRA"
    shown = " [--beta B] [--output FOLDER]"
    option = recipe_command(commands, "dpo", summary, run, options=shown).add_argument
    option("--beta", metavar="B", type=float, default=0.1, help="of DPO (default: 0.1)")
    option("--output", metavar="FOLDER", type=Path, help="default: dpo in the recipe's output_dir")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.files import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    from rahf.distributed.sigterm import handling_sigterm, leave
    from rahf.pipeline.dpo_baseline import run_dpo

    with handling_sigterm(leave):
        run_dpo(recipe, options.beta, options.output or recipe.output_dir / "dpo")
    return 0
