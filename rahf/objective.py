"""The idea of RAHF as pure functions: where a hidden state should go, and how far it is from there.

A response is read under a positive and a negative view; their difference is the `shift`. The target
of the policy is the state of the reference, moved by `alpha` times the shift (RAHF, arXiv
2312.15997, section 3.3). Knows tensors; knows no model, no batch and no weight of a term.

All tensors are packed: `hidden` is [layers, tokens, d_model] over all aligned tokens of a batch,
and `owner` [tokens] is the row that each token belongs to, so no padding can enter a mean.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Distance = Literal["l2", "squared_l2", "relu_cosine", "away"]
LayerScale = Literal["none", "rms", "shift"]

SMALLEST_SCALE = 1e-3
"""Smallest layer scale as a share of the reference's RMS, so that no shift divides by zero."""

RESOLUTION = 1e-5
"""A state whose target is its reference counts as unmoved where their distance is at most this
share of its norm: batches of other sizes round float32 states by as much. The norm of that error
would have a gradient as long as any other's, in a direction without meaning."""


class Target(NamedTuple):
    """Targets of the policy's states, relative to where the states start."""

    reference: Float[Tensor, "layers tokens d_model"]  # where the policy starts
    move: Float[Tensor, "layers tokens d_model"]  # alpha times the shift; 0 on other rows
    scale: Float[Tensor, "layers rows"]  # unit of each layer's distance, per row

    @property
    def states(self) -> Float[Tensor, "layers tokens d_model"]:
        """Return the target states."""
        return self.reference + self.move


def outside(
    shift: Float[Tensor, "layers tokens d_model"], basis: Float[Tensor, "layers basis d_model"]
) -> Float[Tensor, "layers tokens d_model"]:
    """Return the shift without its part in the space of each layer's orthonormal basis."""
    return shift - (shift @ basis.mT) @ basis


class Progress(NamedTuple):
    """Sums for reached share and cosine; they add up over tokens, batches and ranks."""

    dot: Float[Tensor, "layers *items"]  # <moved, move>
    moved: Float[Tensor, "layers *items"]  # |moved|^2
    full: Float[Tensor, "layers *items"]  # |move|^2

    def total(self) -> "Progress":
        """Return the sums over all items of each layer."""
        return Progress(*(each.sum(1) for each in self))

    def of_rows(self, owner: Int[Tensor, " tokens"], rows: int) -> "Progress":
        """Return the sums of each row, of those over single tokens."""
        return Progress(
            *(each.new_zeros(len(each), rows).index_add(1, owner, each) for each in self)
        )

    def reached(self) -> Float[Tensor, " layers"]:
        """Return the share of the move that was made: 0 at the start, 1 at the target."""
        return self.dot / self.full

    def cosine(self) -> Float[Tensor, " layers"]:
        """Return the cosine of the movement to the target's; nan where nothing moved."""
        return self.dot / (self.moved * self.full).sqrt()


def row_mean(
    values: Float[Tensor, "layers tokens"], owner: Int[Tensor, " tokens"], rows: int
) -> Float[Tensor, "layers rows"]:
    """Return the mean over the tokens of each row, so that every row counts the same."""
    sums = values.new_zeros(values.shape[0], rows).index_add(1, owner, values)
    return sums / torch.bincount(owner, minlength=rows).clamp(min=1)


def layer_scale(
    kind: LayerScale,
    reference: Float[Tensor, "layers tokens d_model"],
    move: Float[Tensor, "layers tokens d_model"],
    owner: Int[Tensor, " tokens"],
    rows: int,
) -> Float[Tensor, "layers rows"]:
    """Return the unit of each layer's distance: 1, or a row's RMS norm of reference or move."""
    if kind == "none":
        return reference.new_ones(reference.shape[0], rows)
    rms = row_mean(reference.square().sum(-1), owner, rows).sqrt()
    if kind == "rms":
        return rms
    size = row_mean(move.square().sum(-1), owner, rows).sqrt()
    return torch.maximum(size, SMALLEST_SCALE * rms)


def row_loss(
    hidden: Float[Tensor, "layers tokens d_model"],
    target: Target,
    owner: Int[Tensor, " tokens"],
    distance: Distance,
) -> Float[Tensor, " rows"]:
    """Return the distance of the policy's states to the target: mean over a row's tokens, then over
    layers.

    `l2` is the 2-norm of the published code, `squared_l2` the squared norm of the paper; `away` is
    the negative of `l2` (RepBend). `relu_cosine` is the cosine to the target, 0 where it is
    negative (circuit breakers), and has no unit.
    """
    rows = target.scale.shape[1]
    if distance == "relu_cosine":
        cosine = nn.functional.cosine_similarity(hidden, target.states, dim=-1)
        return row_mean(cosine.relu(), owner, rows).mean(0)
    error = hidden - target.states
    if distance == "squared_l2":
        return (row_mean(error.square().sum(-1), owner, rows) / target.scale.square()).mean(0)
    size = error.norm(dim=-1)
    unmoved = ~target.move.any(-1) & (size <= RESOLUTION * target.reference.norm(dim=-1))
    size = size.masked_fill(unmoved, 0.0)
    near = (row_mean(size, owner, rows) / target.scale).mean(0)
    return -near if distance == "away" else near


def protected_loss(
    hidden: Float[Tensor, "layers tokens d_model"],
    target: Target,
    owner: Int[Tensor, " tokens"],
    basis: Float[Tensor, "layers basis d_model"],
) -> Float[Tensor, " rows"]:
    """Return the squared movement from the reference inside the protected space, in the unit of
    each layer's distance: mean over a row's tokens, then over layers.

    Squared whatever the distance: the norm of a movement of 0 has a gradient without meaning.
    """
    along = ((hidden - target.reference) @ basis.mT).square().sum(-1)
    return (row_mean(along, owner, target.scale.shape[1]) / target.scale.square()).mean(0)


def random_units(
    layers: tuple[int, ...], d_model: int, seed: int
) -> Float[Tensor, "layers d_model"]:
    """Draw RMU's u: a unit vector per layer, uniform in [0, 1) per entry and normed, as published
    (arXiv 2403.03218, section 4). The vector of a layer depends only on the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(max(layers) + 1, d_model, generator=generator)
    return nn.functional.normalize(drawn, dim=-1)[list(layers)]


def dissimilarity(
    states: Float[Tensor, "layers rows d_model"], among: Bool[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Return 1 - cosine of a row's state to those of the other rows, mean over these and the layers
    (RepBend's similarity term, arXiv 2504.01550). 0 for rows not `among`, and for a single row.
    """
    units = nn.functional.normalize(states, dim=-1)
    others = among & among.unsqueeze(1) & ~torch.eye(len(among), dtype=torch.bool).to(among.device)
    apart = torch.where(others, 1 - units @ units.mT, 0.0).sum(-1)
    return (apart / others.sum(-1).clamp(min=1)).mean(0)


def dpo_loss(
    own: Float[Tensor, " responses"], base: Float[Tensor, " responses"], beta: float
) -> Float[Tensor, " pairs"]:
    """Return the loss of DPO (arXiv 2305.18290, equation 7) of each pair.

    Args:
        own: log-probability (nats) of each complete response, the chosen one of a pair before the
            rejected one.
        base: the same under the base.
    """
    chosen, rejected = (own - base).view(-1, 2).unbind(1)
    return -nn.functional.logsigmoid(beta * (chosen - rejected))


def token_divergence(
    reference: Float[Tensor, "tokens vocab"],
    policy: Float[Tensor, "tokens vocab"],
    temperature: float = 1.0,
) -> Float[Tensor, " tokens"]:
    """Return KL(reference || policy) of each token's prediction, in nats.

    Args:
        temperature: both logits are divided by it, the divergence multiplied by its square, so that
            gradients keep their size (distillation, arXiv 1503.02531).
    """
    if temperature != 1:  # logits are large: no needless copy
        policy, reference = policy / temperature, reference / temperature
    return temperature**2 * nn.functional.kl_div(
        policy.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)


def progress(
    hidden: Float[Tensor, "layers tokens d_model"],
    target: Target,
    counts: Bool[Tensor, " tokens"] | None = None,
) -> Progress:
    """Return how far the policy has come on the way to its target.

    Tokens without a move are omitted, and those that do not count.
    """
    return token_progress(hidden, target, counts).total()


def token_progress(
    hidden: Float[Tensor, "layers tokens d_model"],
    target: Target,
    counts: Bool[Tensor, " tokens"] | None = None,
) -> Progress:
    """Return the sums of `progress` of each token, [layers, tokens]."""
    aligned = target.move.square().sum(-1)
    if counts is not None:
        aligned = torch.where(counts, aligned, 0.0)
    moved = (hidden - target.reference) * (aligned > 0).unsqueeze(-1)
    return Progress((moved * target.move).sum(-1), moved.square().sum(-1), aligned)
