"""`rahf sweep`: a recipe at every point of a grid."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the recipe and its overrides are all there is."""


def run(options: argparse.Namespace) -> int:
    from rahf.pipeline.sweep import sweep

    sweep(options.recipe, options.overrides)
    return 0
