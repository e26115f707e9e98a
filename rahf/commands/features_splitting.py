"""`rahf features splitting`: what becomes of features when a dictionary grows."""

import argparse

from rahf.commands.options.dictionaries import dictionary_of, dictionary_option
from rahf.commands.options.figures import figures_option, tell_figures


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    dictionary_option(parser)
    option("--larger", required=True, metavar="NAME", help="the larger dictionary")
    option(
        "--cosine",
        metavar="X",
        type="share",
        default=0.7,
        help="of directions that count as one feature, at least (default: 0.7)",
    )
    option("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU if there is one)")
    figures_option(parser)


def run(options: argparse.Namespace) -> int:
    from rahf.interpret.features.comparisons import check_sizes, splitting
    from rahf.report.features import splitting_table

    small, large = dictionary_of(options), dictionary_of(options, options.larger)
    check_sizes(small, large)
    signed = small.origin.kind == "states"
    found = splitting(small.directions, large.directions, options.cosine, signed=signed)
    children = found.children
    figures = {
        "small": small.latents,
        "large": large.latents,
        "threshold": options.cosine,
        "shares": found.shares(),
        "most_split": [
            {
                "feature": latent,
                "into": (found.parent == latent).nonzero().squeeze(1).tolist(),
            }
            for latent in children.argsort(descending=True, stable=True)[:20].tolist()
            if children[latent] > 1
        ],
    }
    tell_figures(options, figures, splitting_table(figures))
    return 0
