"""What every pair did to every query: per pair, side, layer and token.

One pass over the pairs, which also finds what their rivals read. All changes are those of the query
if the pair were left out, see `formula.py`; tokens, layers and sides of a pair add up to its
change. Knows objectives and solved queries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rahf.influence.curvature import Solve
from rahf.influence.formula import change_if_left_out
from rahf.influence.gradients import (
    Part,
    check_finite_gradients,
    consumed,
    merged,
    row_gradients,
    weights_of_parts,
)
from rahf.influence.objectives import SIDES, Batch, Objective, Read, open_gate
from rahf.influence.seen import Seen, last_states, nothing_seen, see_batch
from rahf.report.progress import timed


class Scores(NamedTuple):
    """The influence of all pairs on all queries."""

    changes: Float[Tensor, "pairs queries"]  # of each query if the pair were left out
    products: Float[Tensor, "pairs queries"]  # the same without curvature: dot products
    self_influence: Float[Tensor, " pairs"]  # change of the pair's own loss if it were left out
    by_layer: Float[Tensor, "queries layers"]  # sum over pairs of |change|
    losses: Float[Tensor, " pairs"]
    seen: Seen | None  # what the pass found beside, where the loss reads both responses
    layers: tuple[int, ...]  # decoder blocks of `by_layer`


def score_pairs(
    objective: Objective,
    parts: Sequence[Part],
    solved: Float[Tensor, "queries parameters"],
    asked: Float[Tensor, "queries parameters"],
    solve_pairs: Solve,
    batch_size: int,
) -> Scores:
    """Return the influence of all pairs; ranks share the batches out.

    Args:
        solved: the curvature's inverse times each query's gradient.
        asked: the gradients themselves.
        solve_pairs: the curvature's inverse for the gradients of pairs.
    """
    state, count, device = PartialState(), len(objective.rows), solved.device
    layers = layers_of(parts)
    changes = torch.zeros(count, len(solved), device=device)
    products, own = torch.zeros_like(changes), torch.zeros(count, device=device)
    by_layer = torch.zeros(len(solved), len(layers), device=device)
    losses, seen = torch.zeros_like(own), nothing_seen(objective)
    mine = objective.by_length(range(count), batch_size)[state.process_index :: state.num_processes]
    for places in timed(mine, "pairs"):
        batch = objective.quick_batch(places, whole=False)
        here = torch.tensor(places, device=device)
        with last_states(objective.model) as last:
            rows, read = pair_row_gradients(objective, parts, batch)
        pairs = merged(rows, batch.example, len(batch.names))
        cells = by_layers(pairs, parts, layers, solved) / count
        changes[here] = cells.sum(1)
        by_layer += cells.abs().sum(0).T
        products[here] = change_if_left_out(asked, pairs, count)
        own[here] = (solve_pairs(pairs) * pairs).sum(1) / count
        losses[here] = read.losses.detach()
        if seen is not None:
            see_batch(seen, read, batch, last, here)
    found = reduce((changes, products, own, by_layer, losses, *(seen or ())), reduction="sum")
    found = [each.cpu() for each in found]
    return Scores(*found[:5], Seen(*found[5:]) if seen is not None else None, layers)


def layers_of(parts: Sequence[Part]) -> tuple[int, ...]:
    return tuple(sorted({part.layer for part in parts}))


def pair_row_gradients(
    objective: Objective, parts: Sequence[Part], batch: Batch
) -> tuple[Float[Tensor, "rows parameters"], Read]:
    """Return the gradient of the pairs' losses through each row, and what the pass has read."""
    found: list[Read] = []

    def loss() -> Tensor:
        with objective.quick():
            found.append(objective.read(batch, open_gate))
        return found[0].losses.sum()

    rows = row_gradients(parts, batch.mask, loss, batch.spans)
    check_finite_gradients(rows, [batch.names[each] for each in batch.example.tolist()])
    return rows, found[0]


def pair_gradients(
    objective: Objective, parts: Sequence[Part], batch: Batch
) -> Float[Tensor, "pairs parameters"]:
    """Return the gradient of each pair's loss, both sides merged."""
    rows, _ = pair_row_gradients(objective, parts, batch)
    return merged(rows, batch.example, len(batch.names))


def by_layers(
    gradients: Float[Tensor, "n parameters"],
    parts: Sequence[Part],
    layers: Sequence[int],
    solved: Float[Tensor, "queries parameters"],
) -> Float[Tensor, "n layers queries"]:
    """Return the product of gradients and solved queries by layer."""
    found = gradients.new_zeros(len(gradients), len(layers), len(solved))
    for part in parts:
        span = slice(part.start, part.stop)
        here = change_if_left_out(solved[:, span], gradients[:, span], 1)
        found[:, layers.index(part.layer)] += here
    return found


def cells_of(
    rows: Float[Tensor, "rows parameters"],
    parts: Sequence[Part],
    layers: Sequence[int],
    solved: Float[Tensor, "queries parameters"],
    batch: Batch,
) -> Float[Tensor, "pairs sides layers queries"]:
    """Return the product of gradients and solved queries, by pair, side and layer."""
    found = by_layers(rows, parts, layers, solved)
    sides = len(SIDES)
    cells = found.new_zeros(len(batch.names) * sides, *found.shape[1:])
    cells.index_add_(0, batch.example * sides + batch.side, found)
    return cells.view(len(batch.names), sides, *found.shape[1:])


class Detail(NamedTuple):
    """The change of one query by one pair, in parts that add up to it.

    Two maps over tokens: `update`, the position whose activations the weights would have moved
    along, and `output`, the token whose prediction or hidden state the loss reads.
    """

    cells: Float[Tensor, "sides layers"]
    tokens: Int[Tensor, "rows seq"]  # ids
    mask: Bool[Tensor, "rows seq"]  # real ones
    side: Int[Tensor, " rows"]
    update: Float[Tensor, "rows seq"]
    output: Float[Tensor, "rows seq"]


def detail_of(
    objective: Objective, parts: Sequence[Part], solved: Float[Tensor, " parameters"], place: int
) -> Detail:
    """Return the change of one query by the pair in a place, by side, layer and token."""
    batch, count = objective.batch([place], whole=False), len(objective.rows)
    update = torch.zeros(batch.mask.shape, device=solved.device)

    def add(part: Part, inputs: Tensor, gradients: Tensor) -> None:
        matrix = part.matrices(solved.unsqueeze(0))[0]
        update.add_(torch.einsum("bto,oi,bti->bt", gradients, matrix, inputs))

    with consumed(parts, batch.mask, add):
        loss = objective.losses(batch, open_gate).sum()
        torch.autograd.grad(loss, weights_of_parts(parts), allow_unused=True)
    rows, _ = pair_row_gradients(objective, parts, batch)
    cells = cells_of(rows, parts, layers_of(parts), solved.unsqueeze(0), batch)[0, :, :, 0]
    output = _output_map(objective, parts, solved, batch)
    found = (cells / count, batch.tokens, batch.mask, batch.side, update / count, output / count)
    return Detail(*(each.detach().cpu() for each in found))


def _output_map(
    objective: Objective, parts: Sequence[Part], solved: Tensor, batch: Batch
) -> Float[Tensor, "rows seq"]:
    """Return how much of the change comes through what the loss reads at each token.

    A gate of 1 at each token leaves values as they are and scales their gradients, so that the
    derivative of the change with respect to the gate is the token's share.
    """
    gates = torch.ones(batch.mask.numel(), device=solved.device, requires_grad=True)

    def gate(values: Tensor, places: Tensor) -> Tensor:
        fixed = values.detach()
        return fixed + gates[places].unsqueeze(-1) * (values - fixed)

    total = 0.0
    with consumed(parts, batch.mask, lambda *_: None):
        loss = objective.losses(batch, gate).sum()
        found = torch.autograd.grad(
            loss, weights_of_parts(parts), create_graph=True, allow_unused=True
        )
    for part, gradient in zip(parts, found, strict=True):
        if gradient is not None:
            total = total + (gradient.flatten() * solved[part.start : part.stop]).sum()
    return torch.autograd.grad(total, gates)[0].view(batch.mask.shape)
