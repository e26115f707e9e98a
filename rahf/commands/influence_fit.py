"""`rahf influence fit`: the curvature of a finished training, which scores are computed with."""

import argparse

from rahf.commands.options.influence import held_training, influence_options, settings_of

EPILOG = """\
Reads the adapter's own training: its recipe, its pairs and its loss, which have to be the ones that
it was trained with. Of an alignment, the teachers that its run has trained are fitted too.
ekfac takes two passes over the pairs, kernel one; cg reads the factors of ekfac."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    influence_options(parser)


def run(options: argparse.Namespace) -> int:
    from accelerate import PartialState

    from rahf.influence.run import fit_all
    from rahf.records.command_line import write_result

    settings = settings_of(options)
    with held_training(options) as training:
        for name in fit_all(training, settings):
            PartialState().print(f"{name}: {options.curvature} in {settings.factors / name}")
        if PartialState().is_main_process:
            write_result(settings.factors / "fitted.json", options.command, {})
    return 0
