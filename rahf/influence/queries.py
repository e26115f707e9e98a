"""What is asked of a model: scalars whose change is attributed to the training pairs.

The log-probability of a completion, the margin of a held-out pair, the projection of a response's
hidden states on a direction, or any function of the model. Rows of ids are differentiated in
batches, hundreds of queries at once. Knows models and rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from rahf.data.rows import sequence_rows
from rahf.influence.gradients import (
    Part,
    check_finite_gradients,
    exact_attention,
    merged,
    row_gradients,
    weights_of_parts,
)
from rahf.influence.hessian import UNUSED, flattened
from rahf.influence.objectives import in_batches, real_tokens
from rahf.models.capture import record
from rahf.models.likelihood import likelihood, model_inputs


class Spoken(NamedTuple):
    """A response in ids, as a part of a query."""

    prompt: list[int]
    response: list[int]
    sign: float = 1.0  # of the response's value in that of the query


class Query(NamedTuple):
    """One scalar of the model."""

    name: str
    rows: tuple[Spoken, ...]  # the query is the sum of their values


class Direction(NamedTuple):
    """Where hidden states are projected: the query is the mean over a response's tokens."""

    layer: int
    unit: Float[Tensor, " d_model"]


Values = Callable[[PeftModel, dict[str, Any]], Float[Tensor, " rows"]]
"""Function from a model and a block of rows to the value of each row."""


def log_probability(name: str, prompt: list[int], response: list[int]) -> Query:
    """Return the query for the log-probability of a completion, in nats."""
    return Query(name, (Spoken(prompt, response),))


def margin(name: str, prompt: list[int], chosen: list[int], rejected: list[int]) -> Query:
    """Return the query for log-probability of chosen minus that of rejected, in nats."""
    return Query(name, (Spoken(prompt, chosen), Spoken(prompt, rejected, -1.0)))


def log_probabilities(model: PeftModel, rows: dict[str, Any]) -> Float[Tensor, " rows"]:
    return likelihood(model, rows).sums()


def projections(direction: Direction) -> Values:
    """Return the values of responses as the mean projection of their hidden states."""

    def values(model: PeftModel, rows: dict[str, Any]) -> Float[Tensor, " rows"]:
        places = rows["response_mask"].flatten().nonzero().squeeze(1)
        none = torch.empty(0, dtype=torch.long, device=places.device)
        with record(model, (direction.layer,), places, stop=True) as recording:
            model(**model_inputs(rows), use_cache=False, logits_to_keep=none)
        along = recording.stack()[0] @ direction.unit.to(places.device)
        owner = rows["owner"][rows["response_mask"]]
        count = torch.bincount(owner, minlength=len(rows["owner"])).clamp(min=1)
        return along.new_zeros(len(count)).index_add(0, owner, along) / count

    return values


class Asked(NamedTuple):
    """Queries at the trained model."""

    names: list[str]
    values: Float[Tensor, " queries"]
    gradients: Float[Tensor, "queries parameters"]


def ask(
    model: PeftModel,
    parts: Sequence[Part],
    queries: Sequence[Query],
    pad: int,
    batch_size: int,
    values: Values = log_probabilities,
) -> Asked:
    """Return value and gradient of every query.

    Raises:
        ValueError: a gradient is not finite.
    """
    rows = [(index, row) for index, query in enumerate(queries) for row in query.rows]
    device, names = parts[0].module.weight.device, [query.name for query in queries]
    found, total = torch.zeros(len(queries), device=device), None
    for places in in_batches(len(rows), batch_size):
        some = [rows[place] for place in places]
        block = sequence_rows([r.prompt for _, r in some], [r.response for _, r in some], pad)
        block = send_to_device(block, device)
        owner = torch.tensor([index for index, _ in some], device=device)
        sign = torch.tensor([row.sign for _, row in some], device=device)
        signed: list[Tensor] = []

        def loss(block=block, sign=sign, signed=signed) -> Tensor:
            signed.append(sign * values(model, block))
            return signed[0].sum()

        gradients = row_gradients(parts, real_tokens(block), loss)
        check_finite_gradients(gradients, [f"query {names[index]!r}" for index, _ in some])
        found.index_add_(0, owner, signed[0].detach())
        here = merged(gradients, owner, len(queries))
        total = here if total is None else total.add_(here)
    return Asked(names, found, total)


def ask_functions(
    model: PeftModel,
    parts: Sequence[Part],
    functions: dict[str, Callable[[PeftModel], Tensor]],
) -> Asked:
    """Return value and gradient of functions of the model, each a scalar, by name."""
    values, gradients = [], []
    for name, function in functions.items():
        with exact_attention():
            value = function(model)
            if value.dim() or not value.requires_grad:
                raise ValueError(
                    f"query {name!r} returned {value.shape} without a gradient, or more than one "
                    "number: return one number that depends on the adapter's weights."
                )
            gradient = torch.autograd.grad(value, weights_of_parts(parts), **UNUSED)
        values.append(value.detach().float())
        gradients.append(flattened(gradient))
    stacked = torch.stack(gradients)
    check_finite_gradients(stacked, [f"query {name!r}" for name in functions])
    return Asked(list(functions), torch.stack(values), stacked)
