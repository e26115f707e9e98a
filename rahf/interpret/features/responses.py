"""Responses as base and aligned models read them: states at a dictionary's site, and divergence.

One model in memory, its adapters switched. Knows models and ids; encodes nothing.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from rahf.data.rows import with_context
from rahf.directions.vectors import check_finite_states
from rahf.interpret.features.dictionary import Dictionary
from rahf.interpret.features.intervention import module_at
from rahf.models.adapters import frozen_pass
from rahf.models.capture import record
from rahf.models.likelihood import predictions, rows_for, state_inputs
from rahf.terms import kl_divergence


class HeldOut(NamedTuple):
    """A held-out response in ids."""

    prompt: int  # number of its prompt: responses to one prompt are one unit of the intervals
    prompt_ids: list[int]
    response_ids: list[int]

    @property
    def digest(self) -> str:
        """Return what identifies the prompt by its ids."""
        return digest_of(self.prompt_ids)


def digest_of(prompt_ids: Sequence[int]) -> str:
    """Return a hash of a prompt's ids."""
    return hashlib.sha256(json.dumps([*prompt_ids]).encode()).hexdigest()[:16]


class Read(NamedTuple):
    """A batch of responses as base and aligned models read it, token after token."""

    base: Float[Tensor, "tokens d_model"]
    aligned: Mapping[str, Float[Tensor, "tokens d_model"]]
    lengths: list[int]
    divergences: list[float]  # KL(base || first adapter), nats per token, of each response
    predicted: list[int]  # tokens that the divergence is a mean over, special ones included


@torch.no_grad()
def read_batch(
    model: PeftModel,
    dictionary: Dictionary,
    adapters: Sequence[str],
    batch: Sequence[HeldOut],
    pad_token_id: int,
    special: Sequence[int] = (),
) -> Read:
    """Return the states of the response tokens; predictions are read of the first adapter only."""
    rows = rows_for(
        model, [e.prompt_ids for e in batch], [e.response_ids for e in batch], pad_token_id
    )
    ids = rows["input_ids"]
    read = rows["response_mask"] & ~torch.isin(ids, torch.tensor(special, device=ids.device).long())
    places = read.flatten().nonzero().squeeze(1)
    rows["response_mask"] = with_context(rows)
    hidden, logits = {}, {}
    for name in (None, *adapters):
        whole = name in (None, adapters[0])
        with frozen_pass(model, name), recorded(model, dictionary, places, stop=not whole) as found:
            if whole:
                logits[name] = predictions(model, rows)
            else:
                model(**state_inputs(rows))
        hidden[name] = found[0]
    owners = (places // ids.shape[1]).tolist()
    check_finite_states(
        torch.stack([*hidden.values()]),
        [dictionary.origin.layer] * len(hidden),
        [f"of prompt {batch[owner].prompt}" for owner in owners],
    )
    kl = kl_divergence(logits[None], logits[adapters[0]], rows["response_mask"], rows)
    base = hidden.pop(None)
    divergences = kl.double().clamp(min=0).tolist()
    predicted = rows["response_mask"].sum(1).tolist()
    return Read(base, hidden, read.sum(1).tolist(), divergences, predicted)


@contextmanager
def recorded(
    model: nn.Module, dictionary: Dictionary, places: Tensor, *, stop: bool
) -> Iterator[list[Tensor]]:
    """Yield a list that the forward inside fills with the states at the dictionary's site.

    Args:
        places: indices into the flattened [batch * seq] tokens.
        stop: skip every block above; the forward's logits are then meaningless.
    """
    found: list[Tensor] = []
    layer = dictionary.origin.layer
    if dictionary.origin.site == "residual":
        with record(model, (layer,), places, stop=stop) as recording:
            yield found
        found.append(recording.stack()[0])
        return

    def keep(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        found.append(states.flatten(0, 1).index_select(0, places).float())

    hook = module_at(model, dictionary).register_forward_hook(keep)
    try:
        with record(model, (layer,), places[:1], stop=stop):
            yield found
    finally:
        hook.remove()
