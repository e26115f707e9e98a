"""A direction as a signed sparse sum of decoder directions, by orthogonal matching pursuit.

An encoder is made for hidden states: of a direction it finds little (arXiv 2411.08790). Knows
vectors only; knows no dictionary, no model and no file.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

TARGETS_AT_ONCE = 32
DEPENDENT = 1e-5
"""Norm of what a unit direction adds to the space of those taken before: below it, nothing."""


class Pursuit(NamedTuple):
    """Sparse sums of decoder directions, one a target."""

    latents: Int[Tensor, "targets terms"]  # in the order in which they were taken
    coefficients: Float[Tensor, "targets terms"]  # of the directions as they are, signed
    explained: Float[Tensor, "targets terms"]  # R2 after each term: share of the squared norm


class Band(NamedTuple):
    """R2 after each term that random vectors reach: the middle and the 95 % range over them."""

    low: Float[Tensor, " terms"]
    median: Float[Tensor, " terms"]
    high: Float[Tensor, " terms"]
    vectors: int


def pursue(
    targets: Float[Tensor, "targets d_target"],
    directions: Float[Tensor, "latents d_model"],
    terms: int,
) -> Pursuit:
    """Take `terms` directions for each target, the one closest to what is left at each step.

    After each step all coefficients are those of least squares (Pati et al. 1993). A direction of
    norm zero is never taken. Where a target is reached exactly, the terms left over have
    coefficients that are zero up to rounding.

    Raises:
        ValueError: a target is zero or not finite; more terms than the directions or d_model allow.
    """
    check_targets(targets, directions)
    usable = int((directions.norm(dim=1) > 0).sum())
    if not 0 < terms <= min(usable, directions.shape[1]):
        raise ValueError(
            f"{terms} terms cannot be taken from {usable} directions in {directions.shape[1]} "
            f"dimensions: give 1 to {min(usable, directions.shape[1])}."
        )
    parts = [_pursue(part, directions, terms) for part in targets.split(TARGETS_AT_ONCE)]
    return Pursuit(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _pursue(targets: Tensor, directions: Tensor, terms: int) -> Pursuit:
    units = nn.functional.normalize(directions.float(), dim=1)
    targets, rows = targets.double(), torch.arange(len(targets), device=targets.device)
    residual, basis, taken, explained = targets, [], [], []
    barred = (directions.norm(dim=1) == 0).repeat(len(targets), 1)
    for _ in range(terms):
        closeness = (residual.float() @ units.T).abs().masked_fill(barred, -1)
        chosen = closeness.argmax(1)
        barred[rows, chosen] = True
        axis = _orthogonal(units[chosen].double(), basis)
        basis.append(axis)
        residual = residual - (residual * axis).sum(1, keepdim=True) * axis
        taken.append(chosen)
        explained.append(1 - residual.square().sum(1) / targets.square().sum(1))
    latents = torch.stack(taken, 1)
    columns = directions[latents].double().transpose(1, 2)  # [targets, d_model, terms]
    solved = torch.linalg.pinv(columns, rtol=DEPENDENT) @ targets[:, :, None]
    return Pursuit(latents, solved.squeeze(2).float(), torch.stack(explained, 1).float())


def _orthogonal(axes: Tensor, basis: list[Tensor]) -> Tensor:
    """Return the part of unit vectors that is orthogonal to the basis, of norm one or zero."""
    for _ in range(2):  # once leaves rounding of the size of what is taken out
        for other in basis:
            axes = axes - (axes * other).sum(1, keepdim=True) * other
    norms = axes.norm(dim=1, keepdim=True)
    return torch.where(norms > DEPENDENT, axes / norms, torch.zeros_like(axes))


def random_band(
    directions: Float[Tensor, "latents d_model"], terms: int, vectors: int, seed: int
) -> Band:
    """Return the R2 that the pursuit reaches for vectors of no meaning, drawn in all directions
    alike.
    """
    # Not torch's generator: with the seed that a dictionary started from, its vectors come back.
    drawn = np.random.default_rng(seed).standard_normal((vectors, directions.shape[1]))
    drawn = torch.from_numpy(drawn).float().to(directions.device)
    explained = pursue(drawn, directions, terms).explained
    levels = torch.tensor([0.025, 0.5, 0.975], device=explained.device)
    return Band(*explained.quantile(levels, dim=0), vectors)


def terms_above(explained: Float[Tensor, " terms"], band: Band) -> int:
    """Return the number of terms, from the first without a gap, that explain more than the band.

    The largest such number would have as many chances as there are terms. Counted from the first,
    a random vector has a single chance, of 2.5 %.
    """
    return int((explained > band.high).long().cumprod(0).sum())


def check_targets(
    targets: Float[Tensor, "targets d_target"], directions: Float[Tensor, "latents d_model"]
) -> None:
    """Refuse targets that no sum of the directions can be measured against.

    Raises:
        ValueError: another width; a target that is zero or not finite.
    """
    if targets.shape[1] != directions.shape[1]:
        raise ValueError(
            f"the direction has {targets.shape[1]} dimensions, those of the dictionary have "
            f"{directions.shape[1]}: they are of different models."
        )
    sizes = targets.norm(dim=1)
    if not (sizes.isfinite() & (sizes > 0)).all():
        raise ValueError(
            "a direction of norm zero, or one that is not finite, cannot be decomposed: fit it "
            "again."
        )


def decomposition_figures(pursuit: Pursuit, band: Band) -> dict[str, Any]:
    """Return the terms of the first target of a pursuit, beside the band."""
    explained = pursuit.explained[0]
    return {
        "terms": [
            {"feature": feature, "coefficient": coefficient, "r2": r2}
            for feature, coefficient, r2 in zip(
                pursuit.latents[0].tolist(),
                pursuit.coefficients[0].tolist(),
                explained.tolist(),
                strict=True,
            )
        ],
        "random": {
            "vectors": band.vectors,
            **{name: getattr(band, name).tolist() for name in ("low", "median", "high")},
        },
        "terms_above_random": terms_above(explained, band),
    }
