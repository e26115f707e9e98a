"""What is asked of a model: scalars whose change is attributed to the training pairs.

The log-probability of a completion, the margin of a held-out pair, the projection of a response's
hidden states on a direction, or any function of the model. Rows of ids are differentiated in
batches, hundreds of queries at once. Knows models and rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor

from rahf.data.rows import sequence_rows
from rahf.influence.gradients import (
    Part,
    check_finite_gradients,
    exact_attention,
    parameter_count,
    row_gradients,
    weights_of_parts,
)
from rahf.influence.hessian import UNUSED, flattened
from rahf.influence.objectives import in_batches, real_tokens
from rahf.models.capture import record
from rahf.models.likelihood import likelihood, state_inputs
from rahf.report.progress import timed


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
        with record(model, (direction.layer,), places, stop=True) as recording:
            model(**state_inputs(rows))
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
    device, names = parts[0].module.weight.device, [query.name for query in queries]
    found = torch.zeros(len(queries), device=device)
    total = torch.zeros(len(queries), parameter_count(parts), device=device)
    for block in _blocks(queries, pad, batch_size, device):
        signed: list[Tensor] = []

        def loss(block: _Block = block, signed: list[Tensor] = signed) -> Tensor:
            signed.append(block.sign * values(model, block.rows))
            return signed[0].sum()

        gradients = row_gradients(parts, real_tokens(block.rows), loss)
        of_rows = [f"query {names[index]!r}" for index in block.query.tolist()]
        check_finite_gradients(gradients, of_rows)
        found.index_add_(0, block.query, signed[0].detach())
        total.index_add_(0, block.query, gradients)
    return Asked(names, found, total)


@torch.no_grad()
def values_of(
    model: PeftModel,
    queries: Sequence[Query],
    pad: int,
    batch_size: int,
    values: Values = log_probabilities,
) -> Float[Tensor, " queries"]:
    """Return the value of every query."""
    device = next(model.parameters()).device
    found = torch.zeros(len(queries), device=device)
    for block in _blocks(queries, pad, batch_size, device):
        found.index_add_(0, block.query, block.sign * values(model, block.rows))
    return found.cpu()


class _Block(NamedTuple):
    rows: dict[str, Any]
    query: Int[Tensor, " rows"]
    sign: Float[Tensor, " rows"]


def _blocks(
    queries: Sequence[Query], pad: int, batch_size: int, device: torch.device
) -> Iterator[_Block]:
    """Yield the rows of all queries, `batch_size` at once."""
    rows = [(index, row) for index, query in enumerate(queries) for row in query.rows]
    for places in timed(in_batches(len(rows), batch_size), "queries"):
        some = [rows[place] for place in places]
        block = sequence_rows([row.prompt for _, row in some], [r.response for _, r in some], pad)
        query = torch.tensor([index for index, _ in some])
        sign = torch.tensor([row.sign for _, row in some])
        yield send_to_device(_Block(block, query, sign), device)


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
