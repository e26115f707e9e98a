"""`rahf features neurons`: what the firing of features reveals, beside equally rare neurons."""

import argparse
from typing import Any

from rahf.commands.options.corpora import corpus_options, pieces
from rahf.commands.options.dictionaries import print_dictionary_figures, reading, reading_options

EPILOG = """\
Each feature that is drawn is compared with a neuron of the same layer's MLP and a neuron of an
untrained model, both thresholded to fire as often. The current token explains much of the firing of
an untrained model's neurons as well; information about the next token is harder to get."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    reading_options(parser)
    corpus_options(parser)
    parser.add_argument(
        "--units", metavar="N", type="count", default=128, help="units of each kind (default: 128)"
    )


def run(options: argparse.Namespace) -> int:
    return print_dictionary_figures(options, _figures)


def _figures(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from rahf.interpret.features.neurons import compare_neurons
    from rahf.report.feature_units import units_table

    read = reading(options)
    figures = compare_neurons(
        read.model,
        read.dictionary,
        pieces(options, read.tokenizer),
        read.pad_token_id,
        units=options.units,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    return figures, units_table(figures)
