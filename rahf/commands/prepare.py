"""`rahf prepare`: a recipe's data tokenised into the cache."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the recipe and its overrides are all there is."""


def run(recipe, _options: argparse.Namespace) -> int:
    from rahf.pipeline.prepare import prepare

    print(prepare(recipe))
    return 0
