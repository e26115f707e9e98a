"""How much of what an adapter does a constant direction does as well.

The best constant in least squares is the mean difference of the states with and without the
adapter. What it explains is measured twice: of the states (`evidence.measure`), and of the
predictions, by steering the model without the adapter.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rahf.directions.states import Reader, Side
from rahf.directions.steering import steer
from rahf.directions.vectors import Directions
from rahf.models.likelihood import predictions, rows_for
from rahf.report.progress import timed
from rahf.terms import kl_divergence


class Effect(NamedTuple):
    """KL divergence of the positive side's predictions, nats per response token."""

    whole: float  # from those of the negative side
    left: dict[str, float]  # from those of the negative side steered, by name of the directions

    def explained(self) -> dict[str, float]:
        """Return the share of the effect that steering makes: 1 all of it, 0 nothing, below 0 away
        from it.
        """
        return {name: 1 - left / self.whole for name, left in self.left.items()}


def candidates(directions: Directions) -> dict[str, Directions]:
    """Return one direction after the other, and all together, so that each layer's state is shifted
    by its own vector.
    """
    single = {f"layer {layer}": directions.only((layer,)) for layer in directions.layers}
    return {**single, "all together": directions.increments()}


@torch.no_grad()
def effect_on_predictions(
    reader: Reader,
    pairs: Sequence[Mapping[str, Any]],
    steering: Mapping[str, Directions],
    batch_size: int,
) -> Effect:
    """Return the mean over the responses of `pairs`, both of each pair, that both sides read."""
    positive, negative = reader.sides
    totals, count = dict.fromkeys(("", *steering), 0.0), 0
    for first in timed(range(0, len(pairs), batch_size), "steering"):
        rows, starts = _rows(reader, negative, pairs[first : first + batch_size])
        wanted = _logits(reader, positive, rows)
        for name in totals:
            # The last prompt token predicts the first of the response.
            with steer(reader.model, steering.get(name, ()), 1.0, start=starts):
                steered = _logits(reader, negative, rows)
            divergence = kl_divergence(wanted, steered, rows["response_mask"], rows)
            totals[name] += divergence.double().sum().item()
        count += len(starts)
    means = {name: total / count for name, total in totals.items()}
    return Effect(means.pop(""), means)


def _rows(
    reader: Reader, side: Side, pairs: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[int]]:
    prompts = [pair[side.prompt] for pair in pairs for _ in side.responses]
    responses = [pair[name][: reader.max_tokens] for pair in pairs for name in side.responses]
    rows = rows_for(reader.model, prompts, responses, reader.pad_token_id)
    return rows, [len(prompt) - 1 for prompt in prompts]


def _logits(reader: Reader, side: Side, rows: dict[str, Any]) -> Float[Tensor, "tokens vocab"]:
    with reader.speaking(side.adapter):
        return predictions(reader.model, rows)
