"""Options of the commands that read a dictionary, and the tokens that name its features."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rahf.commands.options.models import Loaded, device

if TYPE_CHECKING:
    from rahf.interpret.features.dictionary import Dictionary

TOKENS = 6
"""Tokens that stand for a feature in a table."""


def dictionary_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dictionary",
        required=True,
        metavar="NAME",
        help="folder of a dictionary, or sae-lens:RELEASE:ID",
    )


def dictionary_of(options: argparse.Namespace, name: str | None = None) -> "Dictionary":
    """Return the dictionary `name`, or that of --dictionary, on the device of --device."""
    from rahf.interpret.features.checkpoints import load_dictionary

    return load_dictionary(name or options.dictionary, device(options))


def tokens_of(loaded: Loaded, dictionary: "Dictionary", latents: Sequence[int]) -> list[dict]:
    """Return the tokens whose logits each feature raises and lowers most, by name."""
    import torch

    from rahf.interpret.features.logit_effects import logit_effects

    if not latents:
        return []
    directions = dictionary.directions[torch.tensor(latents, device=dictionary.directions.device)]
    effects = logit_effects(loaded.model, directions, TOKENS)
    return [
        {
            "raises": [loaded.tokenizer.decode([token]) for token in raised],
            "lowers": [loaded.tokenizer.decode([token]) for token in lowered],
        }
        for raised, lowered in zip(effects.raised.tolist(), effects.lowered.tolist(), strict=True)
    ]


def with_tokens(
    rows: Sequence[dict[str, Any]], loaded: Loaded, dictionary: "Dictionary"
) -> list[dict[str, Any]]:
    """Return rows of figures of features with the tokens that name them."""
    named = tokens_of(loaded, dictionary, [row["feature"] for row in rows])
    return [row | tokens for row, tokens in zip(rows, named, strict=True)]


def wanted_latents(dictionary: "Dictionary", latents: Sequence[int]) -> list[int]:
    """Return the latents that are asked for.

    Raises:
        ValueError: the dictionary does not have one of them.
    """
    for latent in latents:
        if latent >= dictionary.latents:
            raise ValueError(
                f"--feature {latent}: the dictionary has features 0 to {dictionary.latents - 1}."
            )
    return list(latents)
