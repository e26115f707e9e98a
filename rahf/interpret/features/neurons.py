"""Features beside neurons of the same layer and of an untrained model, each firing as often.

Knows a model, a dictionary and pieces of text; knows no file.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rahf.evaluation.intervals import mean_estimate
from rahf.interpret.features.dictionary import Dictionary, SparseCodes, joined
from rahf.interpret.features.firing import Units, chosen_activations, compared_at_one_rate
from rahf.interpret.features.texts import First, read_texts
from rahf.interpret.features.untrained import untrained_like

LEAST_FIRINGS = 20
"""Tokens in which a feature is active, at least, to be drawn."""


class Fired(NamedTuple):
    """Every token of the texts, and what a model has there."""

    ids: Int[Tensor, " tokens"]
    following: Int[Tensor, " tokens"]
    neurons: Float[Tensor, "tokens units"]  # those that were drawn
    codes: SparseCodes | None


def compare_neurons(
    model: nn.Module,
    dictionary: Dictionary,
    first: First,
    pad_token_id: int,
    *,
    units: int,
    seed: int,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Return what firing reveals about tokens, for features, neurons and untrained neurons.

    Raises:
        ValueError: no feature is active often enough, or the model's neurons cannot be identified.
    """
    given = (dictionary, first, pad_token_id, units, seed, batch_size)
    trained = read_fired(model, *given)
    untrained = read_fired(untrained_like(model, seed), *given, encode=False)
    tokens = len(trained.ids)
    firings = trained.codes.firings().cpu()
    often = ((firings >= LEAST_FIRINGS) & (firings < tokens // 2)).nonzero().squeeze(1)
    drawn = _draw(len(often), trained.neurons.shape[1], seed)
    if len(drawn) == 0:
        raise ValueError(
            f"no feature is active in at least {LEAST_FIRINGS} of the {tokens} tokens and in less "
            "than half of them: give more text (--tokens)."
        )
    features = chosen_activations(trained.codes, often[drawn]).cpu()
    known = trained.following >= 0
    others = {"neurons": trained.neurons, "untrained neurons": untrained.neurons}
    others = {name: part[known][:, : len(drawn)] for name, part in others.items()}
    ids, following = trained.ids[known], trained.following[known]
    found = compared_at_one_rate(features[known], others, ids, following)
    rate = (features != 0).double().mean(0).median().item()
    return {"tokens": len(ids), "count": len(drawn), "rate": rate, "units": _means(found)}


def _means(found: dict[str, Units]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the mean over the units of each kind, with its interval."""
    return {
        name: {
            part: mean_estimate(scores.tolist()).as_dict()
            for part, scores in units._asdict().items()
        }
        for name, units in found.items()
    }


def read_fired(
    model: nn.Module,
    dictionary: Dictionary,
    first: First,
    pad_token_id: int,
    units: int,
    seed: int,
    batch_size: int,
    encode: bool = True,
) -> Fired:
    """Return neurons that the seed draws, and codes where they are requested, of every token."""
    parts, codes = [], []
    for batch in read_texts(
        model, dictionary, first, pad_token_id, batch_size=batch_size, neurons=True
    ):
        drawn = _draw(batch.neurons.shape[1], units, seed)
        neurons = batch.neurons[:, drawn.to(batch.neurons.device)].cpu()
        parts.append((batch.ids, batch.following, neurons))
        if encode:
            codes.append(dictionary.encode(batch.hidden))
    columns = (torch.cat(part) for part in zip(*parts, strict=True))
    return Fired(*columns, joined(codes) if codes else None)


def _draw(count: int, units: int, seed: int) -> Int[Tensor, " units"]:
    return torch.from_numpy(np.random.default_rng(seed).permutation(count)[:units])
