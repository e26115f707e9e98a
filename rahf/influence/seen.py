"""What a scoring pass finds on its way: log-probabilities and hidden states of the pairs.

The rivals read them, so that no pass over the pairs is made twice. Knows models and batches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor

from rahf.influence.objectives import SIDES, Batch, Objective, Read
from rahf.models.capture import find_blocks, text_config


class Seen(NamedTuple):
    """What the pairs are to the model."""

    own: Float[Tensor, " pairs"]  # log-probability of chosen minus rejected, nats
    base: Float[Tensor, " pairs"]  # the same under the base
    states: Float[Tensor, "pairs d_model"]  # mean of prompt and chosen response, last block


@contextmanager
def last_states(model: PeftModel) -> Iterator[list[Tensor]]:
    """Yield the hidden states after the last block, of the passes with gradients made inside."""
    found: list[Tensor] = []

    def keep(_: torch.nn.Module, __: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        if hidden.requires_grad:
            found.append(hidden.detach())

    handle = find_blocks(model).modules[-1].register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def nothing_seen(objective: Objective) -> Seen | None:
    """Return zeros for all pairs; None where the loss does not read both responses."""
    if not objective.compares:
        return None
    zeros = torch.zeros(2, len(objective.rows), device=objective.device)
    width = text_config(objective.model).hidden_size
    return Seen(*zeros, zeros.new_zeros(zeros.shape[1], width))


def see_batch(
    seen: Seen, read: Read, batch: Batch, last: list[Tensor], places: Int[Tensor, " pairs"]
) -> None:
    """Put what a pass has found in the places of its pairs.

    Args:
        last: what `last_states` has yielded.
    """
    assert read.own is not None
    assert read.base is not None
    seen.own[places] = -read.own.diff(dim=1)[:, 0]
    seen.base[places] = -read.base.diff(dim=1)[:, 0]
    seen.states[places] = mean_of_rows(last[-1], batch)[batch.side == SIDES.index("chosen")]


def mean_of_rows(
    hidden: Float[Tensor, "lines seq d_model"], batch: Batch
) -> Float[Tensor, "rows d_model"]:
    """Return the mean over the own tokens of each row."""
    if batch.spans is not None:
        return torch.stack([hidden[0, start:stop].float().mean(0) for start, stop in batch.spans])
    real = batch.mask.unsqueeze(-1)
    return (hidden.float() * real).sum(1) / real.sum(1)
