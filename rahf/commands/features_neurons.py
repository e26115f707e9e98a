"""`rahf features neurons`: what the firing of features says, beside neurons that fire as often."""

import argparse

from rahf.commands.options.dictionaries import dictionary_of, dictionary_option
from rahf.commands.options.figures import figures_option, tell_figures
from rahf.commands.options.models import load, model_options

EPILOG = """\
Each feature that is drawn stands beside a neuron of the same layer's MLP and a neuron of an
untrained model, both thresholded to fire as often. The current token alone explains much of the
firing of an untrained model's neurons as well; what is said of the next token is harder to get."""

LEAST_FIRINGS = 20
"""Tokens in which a feature is active, at least, to be drawn."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    model_options(parser)
    dictionary_option(parser)
    option("--text", required=True, metavar="NAME", help="text file, records or data set")
    option("--column", metavar="NAME", default="text", help="column of the text (default: text)")
    option("--split", metavar="NAME", default="train", help="of a data set (default: train)")
    option("--tokens", metavar="N", type="count", default=50_000, help="tokens read (50000)")
    option("--length", metavar="N", type="count", default=256, help="tokens of a text (256)")
    option("--units", metavar="N", type="count", default=128, help="of each kind (default: 128)")
    option("--seed", metavar="N", type="seed", default=0, help="of the units and the weights")
    option("--batch_size", metavar="N", type="count", default=16, help="texts at once (16)")
    figures_option(parser)


def run(options: argparse.Namespace) -> int:
    from rahf.interpret.features.bases import check_base
    from rahf.interpret.features.corpus import texts_of
    from rahf.interpret.features.texts import first_pieces, neuron_module, untrained_like
    from rahf.report.features import units_table

    dictionary, loaded = dictionary_of(options), load(options)
    check_base(dictionary, loaded.model)
    neuron_module(loaded.model, dictionary.origin.layer)  # refused before the work begins
    texts = texts_of(options.text, options.split, options.column)
    first = first_pieces(texts, loaded.tokenizer, options.length, options.tokens)
    trained = _read(options, loaded.model, loaded.tokenizer, dictionary, first)
    null = untrained_like(loaded.model, options.seed)
    untrained = _read(options, null, loaded.tokenizer, dictionary, first, encode=False)
    figures = _figures(options, trained, untrained)
    tell_figures(options, {"dictionary": options.dictionary, **figures}, units_table(figures))
    return 0


def _read(options: argparse.Namespace, model, tokenizer, dictionary, first, encode=True):
    """Return ids, next ids, codes (None where nothing is encoded) and neurons of every token."""
    import numpy as np
    import torch

    from rahf.interpret.features.dictionary import joined
    from rahf.interpret.features.texts import read_texts
    from rahf.models.adapters import pad_id

    chosen, ids, following, codes, neurons = None, [], [], [], []
    for batch in read_texts(
        model,
        dictionary,
        first,
        pad_id(tokenizer),
        batch_size=options.batch_size,
        neurons=True,
    ):
        if chosen is None:
            count = batch.neurons.shape[1]
            drawn = np.random.default_rng(options.seed).permutation(count)[: options.units]
            chosen = torch.from_numpy(drawn)
        ids.append(batch.ids)
        following.append(batch.following)
        neurons.append(batch.neurons[:, chosen.to(batch.neurons.device)].cpu())
        if encode:
            codes.append(dictionary.encode(batch.hidden))
    joined_codes = joined(codes) if codes else None
    return torch.cat(ids), torch.cat(following), joined_codes, torch.cat(neurons)


def _figures(options: argparse.Namespace, trained, untrained) -> dict:
    import numpy as np
    import torch

    from rahf.evaluation.intervals import mean_estimate
    from rahf.interpret.features.firing import chosen_activations, compared_at_one_rate

    ids, following, codes, neurons = trained
    firings = codes.firings().cpu()
    often = ((firings >= LEAST_FIRINGS) & (firings < len(ids) // 2)).nonzero().squeeze(1)
    drawn = np.random.default_rng(options.seed).permutation(len(often))[: neurons.shape[1]]
    if len(drawn) == 0:
        raise ValueError(
            f"no feature is active in at least {LEAST_FIRINGS} of the {len(ids)} tokens and in "
            "less than half of them: give more text (--tokens)."
        )
    features = chosen_activations(codes, often[torch.from_numpy(drawn)]).cpu()
    count, known = features.shape[1], following >= 0
    others = {"neurons": neurons, "untrained neurons": untrained[3]}
    others = {name: part[known][:, :count] for name, part in others.items()}
    found = compared_at_one_rate(features[known], others, ids[known], following[known])
    return {
        "tokens": int(known.sum()),
        "count": count,
        "rate": (features != 0).double().mean(0).median().item(),
        "units": {
            name: {
                part: mean_estimate(getattr(units, part).tolist()).as_dict()
                for part in units._fields
            }
            for name, units in found.items()
        },
    }
