"""`rahf data`: what a recipe's data becomes."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the recipe and its overrides are all there is."""


def run(recipe, _options: argparse.Namespace) -> int:
    from rahf.pipeline.prepare import describe_data

    print(describe_data(recipe))
    return 0
