"""`rahf evaluate preferences`: whether chosen responses are likelier than rejected ones."""

import argparse

from rahf.commands.options.figures import figures_option, print_figures
from rahf.commands.options.models import content, identity, load, model_options


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    model_options(parser)
    option("--pairs", required=True, metavar="NAME", help="pairs: a file, a folder or a Hub id")
    option("--split", metavar="NAME", default="train", help="split of the pairs (default: train)")
    option(
        "--reference",
        metavar="NAME",
        help="model that DPO's implicit reward is measured against (default: adapter off)",
    )
    option(
        "--max_length",
        metavar="N",
        type="count",
        default=2048,
        help="tokens of each side of a pair, at most (default: 2048)",
    )
    option("--limit", metavar="N", type="count", help="the first N pairs")
    option("--batch_size", metavar="N", type="count", default=8, help="pairs at once (default: 8)")
    figures_option(parser)


def run(options: argparse.Namespace) -> int:
    return print_figures(options, _figures)


def _figures(options: argparse.Namespace):
    """Return figures and table."""
    from peft import PeftModel

    from rahf.data.sources import load_pairs
    from rahf.data.tokenization import tokenize_pairs
    from rahf.evaluation.preferences import pair_sizes, preference_figures
    from rahf.models.adapters import frozen_pass, pad_id
    from rahf.models.likelihood import pair_likelihoods
    from rahf.models.packing import use_packed_attention
    from rahf.report.judgements import preferences_table

    pairs = load_pairs(options.pairs, split=options.split)
    pairs = pairs.select(range(min(len(pairs), options.limit or len(pairs))))
    model, tokenizer = load(options)
    rows, _ = tokenize_pairs(
        pairs, tokenizer, max_length=options.max_length, chat_template=options.chat_template
    )
    asked = (rows, pad_id(tokenizer), options.batch_size)
    use_packed_attention(model)
    reference = None
    measured = pair_likelihoods(model, *asked)
    if options.reference is not None:
        other = load(options, options.reference).model
        use_packed_attention(other)
        reference = pair_likelihoods(other, *asked)
    elif isinstance(model, PeftModel):
        with frozen_pass(model, None):
            reference = pair_likelihoods(model, *asked)
    figures = preference_figures(measured, pair_sizes(rows, tokenizer), reference)
    figures["dropped_pairs"] = len(pairs) - len(rows)
    made_with = {**identity(options), "made_from": content(options)}
    return {**made_with, **figures}, preferences_table(figures)
