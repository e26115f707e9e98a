"""`rahf influence fit`: the curvature of a finished training, which scores are computed with."""

import argparse

from rahf.commands.options.influence import influence_options, report_unchecked, settings_of
from rahf.records.makers import MADE_BY

EPILOG = """\
Reads the adapter's own training: its recipe, its pairs and its loss, which have to be the ones that
it was trained with. Of an alignment, the teachers that its run has trained are fitted too.
ekfac takes two passes over the pairs, kernel one; cg reads the factors of ekfac."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    influence_options(parser)


def run(options: argparse.Namespace) -> int:
    from rahf.artifacts import alone, write_json
    from rahf.influence.run import fit_all
    from rahf.influence.trained import read_training

    settings = settings_of(options)
    with alone(settings.factors, wait=False):
        report_unchecked(read_training(options.adapter))
        for name in fit_all(options.adapter, settings):
            print(f"{name}: {options.curvature} in {settings.factors / name}")
        write_json(settings.factors / "fitted.json", {MADE_BY: options.command})
    return 0
