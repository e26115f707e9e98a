"""The idea of RAHF as pure functions: where a hidden state should go, and how far it is from there.

A response is said under a positive and a negative view; their difference is the `shift`. The policy
is asked to stand where the reference stood, moved by `alpha` times the shift (RAHF, arXiv
2312.15997, section 3.3). Neighbours ask something else of some rows: a `Term` says which rows, at
what distance of their target, with what weight at what time. Nothing here knows a model.

All tensors are packed: `hidden` is [layers, tokens, d_model] over the aligned tokens of a whole
batch, and `owner` [tokens] says which row each token belongs to, so no padding can enter a mean.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Distance = Literal["l2", "squared_l2", "relu_cosine", "away"]
LayerScale = Literal["none", "rms", "shift"]
RowKind = Literal["responses", "chosen", "rejected", "retained"]

SMALLEST_SCALE = 1e-3
"""Smallest layer scale as a share of the reference's RMS, so that no shift divides by zero."""

RESOLUTION = 1e-5
"""A state that nothing asks to move and that stands this near to its reference, as a share of it,
has not moved: batches of other sizes round float32 states by as much. The norm of that error would
have a gradient as long as any other's, in no direction that means something."""


class Asked(NamedTuple):
    """What the frozen views ask of the policy."""

    reference: Float[Tensor, "layers tokens d_model"]  # where the policy starts
    shift: Float[
        Tensor, "layers tokens d_model"
    ]  # alpha * (positive - negative); zero on retained rows
    scale: Float[
        Tensor, "layers rows"
    ]  # unit in which the distance of each layer is measured, per row


class Term(NamedTuple):
    """A part of the loss: the distance of some rows to their target."""

    name: str  # under which it is logged
    rows: RowKind
    distance: Distance
    weight: float
    schedule: Literal["constant", "falling", "rising"] = "constant"

    def weight_at(self, elapsed: float) -> float:
        """The weight when a share `elapsed` of all steps is done: falling from 1 to a half of
        `weight`, rising from 0 to a half of it (circuit breakers, arXiv 2406.04313, algorithm 1).
        """
        shares = {"constant": 1.0, "falling": 1 - elapsed / 2, "rising": elapsed / 2}
        return shares[self.schedule] * self.weight


class Progress(NamedTuple):
    """Sums over tokens that give reached share and cosine, and add up over batches and ranks."""

    dot: Float[Tensor, " layers"]  # <moved, asked>
    moved: Float[Tensor, " layers"]  # |moved|^2
    asked: Float[Tensor, " layers"]  # |asked|^2

    def reached(self) -> Float[Tensor, " layers"]:
        """Share of the asked shift that was made: 0 at the start, 1 at the target, nan if none."""
        return self.dot / self.asked

    def cosine(self) -> Float[Tensor, " layers"]:
        """Cosine of the movement made to the movement asked. nan where nothing moved."""
        return self.dot / (self.moved * self.asked).sqrt()


def row_mean(
    values: Float[Tensor, "layers tokens"], owner: Int[Tensor, " tokens"], rows: int
) -> Float[Tensor, "layers rows"]:
    """Mean over the tokens of each row, so that a long response counts as much as a short one."""
    sums = values.new_zeros(values.shape[0], rows).index_add(1, owner, values)
    return sums / torch.bincount(owner, minlength=rows).clamp(min=1)


def layer_scale(
    kind: LayerScale,
    reference: Float[Tensor, "layers tokens d_model"],
    shift: Float[Tensor, "layers tokens d_model"],
    owner: Int[Tensor, " tokens"],
    rows: int,
) -> Float[Tensor, "layers rows"]:
    """Unit of each layer's distance: 1, or the RMS norm over the row of reference or shift."""
    if kind == "none":
        return reference.new_ones(reference.shape[0], rows)
    rms = row_mean(reference.square().sum(-1), owner, rows).sqrt()
    if kind == "rms":
        return rms
    size = row_mean(shift.square().sum(-1), owner, rows).sqrt()
    return torch.maximum(size, SMALLEST_SCALE * rms)


def row_loss(
    hidden: Float[Tensor, "layers tokens d_model"],
    asked: Asked,
    owner: Int[Tensor, " tokens"],
    distance: Distance,
) -> Float[Tensor, " rows"]:
    """Distance of the policy's states to the target: mean over a row's tokens, then over layers.

    `l2` is the 2-norm of the published code, `squared_l2` the squared norm of the paper; `away` is
    the negative of `l2` (RepBend), `relu_cosine` the cosine to the target, 0 where it is negative
    (circuit breakers), which knows no unit.
    """
    target, rows = asked.reference + asked.shift, asked.scale.shape[1]
    if distance == "relu_cosine":
        cosine = nn.functional.cosine_similarity(hidden, target, dim=-1)
        return row_mean(cosine.relu(), owner, rows).mean(0)
    error = hidden - target
    if distance == "squared_l2":
        return (row_mean(error.square().sum(-1), owner, rows) / asked.scale.square()).mean(0)
    size = error.norm(dim=-1)
    unmoved = ~asked.shift.any(-1) & (size <= RESOLUTION * asked.reference.norm(dim=-1))
    size = size.masked_fill(unmoved, 0.0)
    near = (row_mean(size, owner, rows) / asked.scale).mean(0)
    return -near if distance == "away" else near


def random_units(
    layers: tuple[int, ...], d_model: int, seed: int
) -> Float[Tensor, "layers d_model"]:
    """RMU's u: a unit vector per layer, drawn uniformly from [0, 1) per entry and normed, as
    published (arXiv 2403.03218, section 4). That of a layer depends on the seed alone.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(max(layers) + 1, d_model, generator=generator)
    return nn.functional.normalize(drawn, dim=-1)[list(layers)]


def dissimilarity(
    states: Float[Tensor, "layers rows d_model"], among: Bool[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """1 - cosine of a row's state to those of the other rows, mean over these and the layers
    (RepBend's similarity term, arXiv 2504.01550). 0 for rows not `among`, and for one alone.
    """
    units = nn.functional.normalize(states, dim=-1)
    others = among & among.unsqueeze(1) & ~torch.eye(len(among), dtype=torch.bool).to(among.device)
    apart = torch.where(others, 1 - units @ units.mT, 0.0).sum(-1)
    return (apart / others.sum(-1).clamp(min=1)).mean(0)


def dpo_loss(
    own: Float[Tensor, " responses"], base: Float[Tensor, " responses"], beta: float
) -> Float[Tensor, " pairs"]:
    """Direct preference optimisation (arXiv 2305.18290, equation 7), pair by pair.

    Args:
        own: log-probability (nats) of each whole response, the chosen one of a pair before the
            rejected one.
        base: the same under the base.
    """
    chosen, rejected = (own - base).view(-1, 2).unbind(1)
    return -nn.functional.logsigmoid(beta * (chosen - rejected))


def progress(hidden: Float[Tensor, "layers tokens d_model"], asked: Asked) -> Progress:
    """How far the policy has come along the asked shift; tokens that ask nothing are left out."""
    aligned = asked.shift.square().sum(-1)
    moved = (hidden - asked.reference) * (aligned > 0).unsqueeze(-1)
    return Progress(
        dot=(moved * asked.shift).sum((1, 2)),
        moved=moved.square().sum((1, 2)),
        asked=aligned.sum(1),
    )
