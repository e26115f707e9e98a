"""`rahf features universality`: features that two models share."""

import argparse

from rahf.commands.options.dictionaries import dictionary_of, dictionary_option
from rahf.commands.options.figures import figures_option, tell_figures
from rahf.commands.options.models import load, model_options

EPILOG = """\
Both models read the same tokens, so they need one tokenizer. For each feature that is drawn the
largest correlation with any feature of the other model is shown, beside the same with the tokens
shuffled (what the largest of many is by chance), and that of single dimensions of hidden states."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    model_options(parser)
    dictionary_option(parser)
    option("--other_model", required=True, metavar="NAME", help="the other model")
    option("--other_dictionary", required=True, metavar="NAME", help="its dictionary")
    option("--text", required=True, metavar="NAME", help="text file, records or data set")
    option("--column", metavar="NAME", default="text", help="column of the text (default: text)")
    option("--split", metavar="NAME", default="train", help="of a data set (default: train)")
    option("--tokens", metavar="N", type="count", default=50_000, help="tokens read (50000)")
    option("--length", metavar="N", type="count", default=256, help="tokens of a text (256)")
    option("--units", metavar="N", type="count", default=512, help="features drawn (default: 512)")
    option("--seed", metavar="N", type="seed", default=0, help="of the features (default: 0)")
    option("--batch_size", metavar="N", type="count", default=16, help="texts at once (16)")
    figures_option(parser)


def run(options: argparse.Namespace) -> int:
    from rahf.interpret.features.bases import check_base
    from rahf.interpret.features.corpus import texts_of
    from rahf.interpret.features.texts import first_pieces
    from rahf.interpret.token_shift.shift import check_same_tokenizer
    from rahf.report.features import universality_table

    dictionaries = [dictionary_of(options), dictionary_of(options, options.other_dictionary)]
    models = [load(options), load(options, options.other_model)]
    check_same_tokenizer(models[0].tokenizer, models[1].tokenizer)
    for dictionary, loaded in zip(dictionaries, models, strict=True):
        check_base(dictionary, loaded.model)
    texts = texts_of(options.text, options.split, options.column)
    first = first_pieces(texts, models[0].tokenizer, options.length, options.tokens)
    figures = _figures(options, dictionaries, models, first)
    tell_figures(options, figures, universality_table(figures))
    return 0


def _figures(options: argparse.Namespace, dictionaries, models, first) -> dict:
    import numpy as np
    import torch

    from rahf.interpret.features.comparisons import SharedDimensions, SharedFeatures
    from rahf.interpret.features.texts import read_texts
    from rahf.models.adapters import pad_id

    sizes = tuple(dictionary.latents for dictionary in dictionaries)
    drawn = np.random.default_rng(options.seed).permutation(sizes[0])[: options.units]
    features = SharedFeatures(torch.from_numpy(drawn), sizes, options.seed)
    dimensions = SharedDimensions(*(dictionary.d_model for dictionary in dictionaries))
    readers = [
        read_texts(
            loaded.model, dictionary, first, pad_id(loaded.tokenizer), batch_size=options.batch_size
        )
        for loaded, dictionary in zip(models, dictionaries, strict=True)
    ]
    for ours, others in zip(*readers, strict=True):
        features.add(dictionaries[0].encode(ours.hidden), dictionaries[1].encode(others.hidden))
        dimensions.add(ours.hidden, others.hidden)
    found = features.universality()
    if len(found.latents) == 0:
        raise ValueError(
            f"none of the {len(drawn)} features drawn is active often enough in "
            f"{features.tokens} tokens: give more text (--tokens)."
        )
    parts = {
        "features": found.correlation,
        "features, tokens shuffled": found.shuffled,
        "dimensions": dimensions.best(),
    }
    return {
        "tokens": features.tokens,
        "correlations": {name: _quartiles(part) for name, part in parts.items()},
        "features": [
            {"feature": latent, "other": other, "correlation": value}
            for latent, other, value in zip(
                found.latents.tolist(), found.best.tolist(), found.correlation.tolist(), strict=True
            )
        ],
    }


def _quartiles(values) -> dict[str, float]:
    import torch

    levels = torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)
    names = ("q25", "median", "q75")
    return {"count": len(values)} | dict(zip(names, values.quantile(levels).tolist(), strict=True))
