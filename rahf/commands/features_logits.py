"""`rahf features logits`: which tokens a feature raises and lowers by itself."""

import argparse

from rahf.commands.options.dictionaries import (
    dictionary_of,
    dictionary_option,
    wanted_latents,
    with_tokens,
)
from rahf.commands.options.figures import figures_option, tell_figures
from rahf.commands.options.models import load, model_options

EPILOG = """\
The feature's direction goes through the model's final norm and unembedding alone: what later layers
make of it is not shown."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    model_options(parser)
    dictionary_option(parser)
    parser.add_argument(
        "--feature",
        metavar="N",
        type="count from zero",
        action="append",
        required=True,
        help="number of a feature; may be given again",
    )
    figures_option(parser)


def run(options: argparse.Namespace) -> int:
    from rahf.interpret.features.bases import check_base
    from rahf.report.features import logits_table

    dictionary = dictionary_of(options)
    rows = [{"feature": latent} for latent in wanted_latents(dictionary, options.feature)]
    loaded = load(options)
    check_base(dictionary, loaded.model)
    rows = with_tokens(rows, loaded, dictionary)
    tell_figures(options, {"features": rows}, logits_table(rows))
    return 0
