"""Contrasting hidden states of a model, batch by batch: what directions are fitted to.

Three sources: chosen against rejected responses, one response under a positive and a
negative instruction, one response read by two adapters. Knows models and rows of ids; fits nothing.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather, pad_across_processes
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn

from rahf.directions.vectors import check_finite_states
from rahf.models.adapters import frozen_pass
from rahf.models.capture import record
from rahf.models.likelihood import rows_for, state_inputs

Source = Literal["responses", "instructions", "adapters"]
Tokens = Literal["last", "mean", "every"]


class Side(NamedTuple):
    """The prompt, the responses and the adapter of one side of a contrast."""

    prompt: str  # column of the prompt's ids
    responses: tuple[str, ...]  # columns of the responses' ids
    adapter: str | None  # None: the base


BOTH = ("chosen_ids", "rejected_ids")
SIDES: dict[str, tuple[Side, Side]] = {
    "responses": (
        Side("prompt_ids", BOTH[:1], None),
        Side("prompt_ids", BOTH[1:], None),
    ),
    "instructions": (
        Side("positive_prompt_ids", BOTH, None),
        Side("negative_prompt_ids", BOTH, None),
    ),
    "adapters": (
        Side("prompt_ids", BOTH, "positive"),
        Side("prompt_ids", BOTH, "negative"),
    ),
}


class Samples(NamedTuple):
    """Contrasting states of a batch. The weights of one response add up to 1; a sample of weight 0
    is padding.
    """

    positive: Float[Tensor, "layers positive d_model"]
    positive_weight: Float[Tensor, " positive"]
    negative: Float[Tensor, "layers negative d_model"]
    negative_weight: Float[Tensor, " negative"]
    difference: Float[Tensor, "layers differences d_model"]  # positive minus negative
    difference_weight: Float[Tensor, " differences"]
    square: Float[Tensor, "layers rows"]  # mean squared norm of a response's states
    square_weight: Float[Tensor, " rows"]

    @property
    def pairs(self) -> int:
        """Return the contrasts, padding omitted."""
        return round(self.difference_weight.sum().item())


class States(NamedTuple):
    """Packed states of the responses of one side."""

    hidden: Float[Tensor, "layers tokens d_model"]
    owner: Int[Tensor, " tokens"]  # response that a token belongs to
    weight: Float[Tensor, " tokens"]  # 1 / tokens of that response

    def means(self) -> Float[Tensor, "layers responses d_model"]:
        count = int(self.owner[-1]) + 1
        sums = self.hidden.new_zeros(self.hidden.shape[0], count, self.hidden.shape[2])
        return sums.index_add(1, self.owner, self.hidden * self.weight[:, None])

    def squares(self) -> Float[Tensor, "layers responses"]:
        count = int(self.owner[-1]) + 1
        sums = self.hidden.new_zeros(self.hidden.shape[0], count)
        return sums.index_add(1, self.owner, self.hidden.square().sum(-1) * self.weight)


class Reader:
    """Reads samples from a model.

    Args:
        model: the base, or for the source `adapters` a PEFT model with adapters `positive` and
            `negative`; a side without one of them is read by the base.
        layers: blocks whose output is read, ascending.
        tokens: `last` response token, `mean` over the response, or `every` token of it as a sample
            of its own.
        max_tokens: tokens of a response, from its start, that are read.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        tokens: Tokens,
        layers: tuple[int, ...],
        pad_token_id: int,
        max_tokens: int | None = None,
    ):
        self.model = model
        self.sides = SIDES[source]
        self.tokens = tokens
        self.layers = layers
        self.pad_token_id = pad_token_id
        self.max_tokens = max_tokens

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> Samples:
        positive, negative = (self.states(side, pairs) for side in self.sides)
        same_ids = self.sides[0].responses == self.sides[1].responses
        square = torch.cat([positive.squares(), negative.squares()], 1)
        if self.tokens == "mean":
            positive, negative = (_whole(states.means()) for states in (positive, negative))
        if self.tokens != "every" or same_ids:
            difference = positive.hidden - negative.hidden
            difference_weight = positive.weight
        else:
            difference, difference_weight = across(positive, negative)
        return Samples(
            positive.hidden,
            positive.weight,
            negative.hidden,
            negative.weight,
            difference,
            difference_weight,
            square,
            torch.ones_like(square[0]),
        )

    def states(self, side: Side, pairs: Sequence[Mapping[str, Any]]) -> States:
        """Return states of one side's responses, pair by pair."""
        prompts = [pair[side.prompt] for pair in pairs for _ in side.responses]
        responses = [pair[name][: self.max_tokens] for pair in pairs for name in side.responses]
        rows = rows_for(self.model, prompts, responses, self.pad_token_id)
        mask = rows["response_mask"]
        if self.tokens == "last":
            mask = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        wanted = mask.flatten().nonzero().squeeze(1)
        owner = wanted // mask.shape[1]
        weight = 1 / torch.bincount(owner, minlength=len(prompts))[owner]
        with (
            self.speaking(side.adapter),
            record(self.model, self.layers, wanted, stop=True) as recording,
        ):
            self.model(**state_inputs(rows))
        hidden = recording.stack()
        names = [pair.get("row", index) for index, pair in enumerate(pairs) for _ in side.responses]
        check_finite_states(hidden, self.layers, [names[index] for index in owner.tolist()])
        return States(hidden, owner, weight)

    def speaking(self, adapter: str | None) -> AbstractContextManager:
        """Return the model as one adapter, or as the base."""
        if not isinstance(self.model, PeftModel):
            return torch.no_grad()
        return frozen_pass(self.model, adapter if adapter in self.model.peft_config else None)


def _whole(hidden: Tensor) -> States:
    count = hidden.shape[1]
    return States(hidden, torch.arange(count, device=hidden.device), hidden.new_ones(count))


def across(
    positive: States, negative: States
) -> tuple[Float[Tensor, "layers tokens d_model"], Float[Tensor, " tokens"]]:
    """Return differences of responses whose tokens do not correspond: each token against the mean
    of the other response of its pair. The two sides of a pair weigh a half each.
    """
    ahead = positive.hidden - negative.means()[:, positive.owner]
    behind = positive.means()[:, negative.owner] - negative.hidden
    return (
        torch.cat([ahead, behind], 1),
        torch.cat([positive.weight, negative.weight]) / 2,
    )


def from_all_ranks(samples: Samples, state: PartialState) -> Samples:
    """Return the samples of all ranks, rank after rank, on every rank; what one process would have
    read from the batches joined, but for padding of weight 0.
    """
    if state.num_processes == 1:
        return samples
    whole = []
    for tensor in samples:
        first = tensor.movedim(-2, 0) if tensor.ndim == 3 else tensor.movedim(-1, 0)
        joined = gather(pad_across_processes(first.contiguous(), dim=0))
        whole.append(joined.movedim(0, -2 if tensor.ndim == 3 else -1))
    return Samples(*whole)
