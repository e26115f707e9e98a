"""`rahf features universality`: features that two models share."""

import argparse
from typing import Any

from rahf.commands.options.corpora import corpus_options, pieces
from rahf.commands.options.dictionaries import print_dictionary_figures, reading, reading_options

EPILOG = """\
Both models read the same tokens, so they need one tokenizer. For each feature that is drawn the
largest correlation with any feature of the other model is shown, beside the same with the tokens
shuffled (what the largest of many is by chance), and that of single dimensions of hidden states."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    reading_options(parser)
    corpus_options(parser)
    option = parser.add_argument
    option("--other_model", required=True, metavar="NAME", help="the other model")
    option("--other_dictionary", required=True, metavar="NAME", help="its dictionary")
    option("--units", metavar="N", type="count", default=512, help="features drawn (default: 512)")


def run(options: argparse.Namespace) -> int:
    return print_dictionary_figures(options, _figures)


def _figures(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from rahf.interpret.features.universality import universality_figures
    from rahf.interpret.token_shift.shift import check_same_tokenizer
    from rahf.report.feature_units import universality_table

    ours = reading(options)
    other = reading(options, options.other_model, options.other_dictionary)
    check_same_tokenizer(ours.tokenizer, other.tokenizer)
    figures = universality_figures(*_read(options, ours, other))
    return figures, universality_table(figures)


def _read(options: argparse.Namespace, ours, other):
    """Return the gathered correlations of features, and of dimensions."""
    import numpy as np
    import torch

    from rahf.interpret.features.texts import read_texts
    from rahf.interpret.features.universality import SharedDimensions, SharedFeatures

    both = (ours.dictionary, other.dictionary)
    drawn = np.random.default_rng(options.seed).permutation(both[0].latents)[: options.units]
    sizes = (both[0].latents, both[1].latents)
    features = SharedFeatures(torch.from_numpy(drawn), sizes, options.seed)
    dimensions = SharedDimensions(both[0].d_model, both[1].d_model)
    first = pieces(options, ours.tokenizer)
    readers = [
        read_texts(
            each.model, each.dictionary, first, each.pad_token_id, batch_size=options.batch_size
        )
        for each in (ours, other)
    ]
    for batches in zip(*readers, strict=True):
        hidden = [batch.hidden for batch in batches]
        features.add(*(d.encode(states) for d, states in zip(both, hidden, strict=True)))
        dimensions.add(*hidden)
    return features, dimensions
