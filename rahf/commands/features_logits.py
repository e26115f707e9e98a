"""`rahf features logits`: which tokens a feature raises and lowers by itself."""

import argparse
from typing import Any

from rahf.commands.options.dictionaries import (
    check_features,
    feature_option,
    print_dictionary_figures,
    reading,
    reading_options,
    with_tokens,
)

EPILOG = """\
The feature's direction goes through the model's final norm and unembedding only; the effect of
later layers is not shown."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    reading_options(parser)
    feature_option(parser)


def run(options: argparse.Namespace) -> int:
    return print_dictionary_figures(options, _figures)


def _figures(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from rahf.report.feature_terms import logits_table

    read = reading(options, differences=True)
    check_features(options, read.dictionary)
    rows = with_tokens([{"feature": latent} for latent in options.feature], read)
    return {"features": rows}, logits_table(rows)
