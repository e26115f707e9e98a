"""What a vector says by itself: the tokens whose logits it raises and lowers, where these exceed
what random vectors do.

Knows models and vectors; knows no example.
"""

import json
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rahf.interpret.explanations.tokens import TokenTexts
from rahf.interpret.explanations.units import random_directions
from rahf.interpret.features.logit_effects import DIRECTIONS_AT_ONCE, all_effects

NAMED = 6
"""Tokens named of either side, at most."""

NULL = 128
"""Random vectors."""

QUANTILE = 0.95
"""Share of random vectors whose mean effect on as many tokens is weaker than that of named ones."""


class Effects(NamedTuple):
    """Tokens that a vector makes likelier and less likely, the strongest first."""

    raised: tuple[str, ...] = ()
    lowered: tuple[str, ...] = ()


def effects_of(
    model: nn.Module, vectors: Float[Tensor, "vectors d_model"], texts: TokenTexts, seed: int = 0
) -> list[Effects]:
    """Return what each vector does to the logits, through the final norm and the unembedding.

    An effect is counted in standard deviations over the vocabulary. A vector whose strongest
    effects are no stronger than those of random vectors has no tokens.
    """
    drawn = _strongest(model, random_directions(NULL, vectors.shape[1], seed))
    least = torch.cat([values.mean(1) for values, _ in drawn]).quantile(QUANTILE)
    sides = []
    for values, tokens in _strongest(model, vectors):
        beyond = values.mean(1) > least
        named = [tuple(filter(None, map(texts.shown, row))) for row in tokens.tolist()]
        sides.append([row if yes else () for row, yes in zip(named, beyond.tolist(), strict=True)])
    return [Effects(*both) for both in zip(*sides, strict=True)]


def _strongest(
    model: nn.Module, vectors: Float[Tensor, "vectors d_model"]
) -> list[tuple[Float[Tensor, "vectors named"], Int[Tensor, "vectors named"]]]:
    """Return the strongest effects of each vector upwards, and downwards, with their tokens."""
    found = []
    for part in vectors.split(DIRECTIONS_AT_ONCE):
        effects = all_effects(model, part).cpu()
        effects /= effects.std(1, keepdim=True).clamp(min=torch.finfo(effects.dtype).tiny)
        found.append([(sign * effects).topk(min(NAMED, effects.shape[1])) for sign in (1, -1)])
    return [
        (torch.cat([part.values for part in side]), torch.cat([part.indices for part in side]))
        for side in zip(*found, strict=True)
    ]


def in_words(effects: Effects) -> str:
    """Return the effects as a sentence; nothing where there are none."""
    sides = (("more", effects.raised), ("less", effects.lowered))
    named = [
        f"these tokens {how} likely to come next: {', '.join(map(json.dumps, tokens))}"
        for how, tokens in sides
        if tokens
    ]
    return f"By itself it makes {'; and '.join(named)}." if named else ""
