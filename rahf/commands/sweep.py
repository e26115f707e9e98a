"""`rahf sweep`: a recipe at every point of a grid."""

import argparse

from rahf.commands.options.parsers import recipe_command


def add(commands) -> None:
    summary = "run a recipe with every combination of the values given: --alpha 1,2,5"
    recipe_command(commands, "sweep", summary, run)


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.pipeline.sweep import sweep

    sweep(options.recipe, overrides)
    return 0
