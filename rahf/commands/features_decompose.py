"""`rahf features decompose`: a direction as a sparse sum of a dictionary's directions."""

import argparse
import sys
from typing import Any

from rahf.commands.options.dictionaries import (
    dictionary_of,
    print_dictionary_figures,
    reading,
    reading_options,
    with_tokens,
)
from rahf.commands.options.explanations import (
    explanations_option,
    known_explanations,
    with_explanations,
)

EPILOG = """\
The direction is that of the dictionary's layer. Compare its R2 with that of random vectors: only
a share above their range is evidence about the direction. With --model each feature is shown
with the tokens whose logits it raises."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    option(
        "directions", metavar="DIRECTIONS", type="name", help="file of directions, or its folder"
    )
    reading_options(parser, named=False)
    option("--terms", metavar="N", type="count", default=16, help="terms of the sum (default: 16)")
    option(
        "--random",
        metavar="N",
        type="count",
        default=200,
        help="random vectors beside it (default: 200)",
    )
    option(
        "--seed",
        metavar="N",
        type="seed",
        default=0,
        help="seed of the random vectors (default: 0)",
    )
    option("--model", metavar="NAME", help="model whose logits name the features")
    option("--base", metavar="NAME", help="base in place of the one that the adapter names")
    explanations_option(parser)


def run(options: argparse.Namespace) -> int:
    return print_dictionary_figures(options, _figures)


def _figures(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from rahf.directions.vectors import Directions
    from rahf.interpret.features.pursuit import decomposition_figures, pursue, random_band
    from rahf.report.feature_terms import decomposition_table

    known = known_explanations(options)
    directions, dictionary = Directions.load(options.directions), dictionary_of(options)
    layer = dictionary.origin.layer
    if layer not in directions.layers:
        raise ValueError(
            f"the dictionary is of layer {layer}, but {options.directions} holds layers "
            f"{list(directions.layers)}: give a dictionary of one of them."
        )
    _report_differences(directions, dictionary.origin)
    target = directions.select((layer,)).to(dictionary.directions)
    pursuit = pursue(target, dictionary.directions, options.terms)
    band = random_band(dictionary.directions, options.terms, options.random, options.seed)
    figures = {"layer": layer, **decomposition_figures(pursuit, band)}
    if options.model:
        figures["terms"] = with_tokens(figures["terms"], reading(options, differences=True))
    figures["terms"] = with_explanations(figures["terms"], known)
    return figures, decomposition_table(figures)


def _report_differences(directions, origin) -> None:
    """Print where directions and dictionary may not go together, which their widths do not show."""
    from rahf.models.adapters import same_model

    base = directions.metadata.get("model")
    if base and not same_model(base, origin.base):
        print(
            f"warning: the directions are of {base}, the dictionary is of {origin.base}; the sum "
            "means something only where these are one model.",
            file=sys.stderr,
        )
    if origin.site == "mlp":
        print(
            "note: the dictionary is of the MLP's output: the sum shows what that MLP would have "
            "to write to make the direction.",
            file=sys.stderr,
        )
