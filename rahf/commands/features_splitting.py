"""`rahf features splitting`: what becomes of features when a dictionary grows."""

import argparse
from typing import Any

from rahf.commands.options.dictionaries import (
    dictionary_of,
    print_dictionary_figures,
    reading_options,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    reading_options(parser, named=False)
    option("--larger", required=True, metavar="NAME", help="the larger dictionary")
    option(
        "--cosine",
        metavar="X",
        type="share",
        default=0.7,
        help="least cosine of directions that count as one feature (default: 0.7)",
    )


def run(options: argparse.Namespace) -> int:
    return print_dictionary_figures(options, _figures)


def _figures(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from rahf.interpret.features.splitting import check_sizes, splitting, splitting_figures
    from rahf.report.feature_units import splitting_table

    small, large = dictionary_of(options), dictionary_of(options, options.larger)
    check_sizes(small, large)
    signed = small.origin.kind == "states"
    found = splitting(small.directions, large.directions, options.cosine, signed=signed)
    figures = {"threshold": options.cosine, **splitting_figures(found)}
    return figures, splitting_table(figures)
