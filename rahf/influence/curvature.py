"""The curvatures that influence can be computed with, each as one function: solve.

Knows objectives and factors; the formulas are in `formula.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from rahf.influence.factors import FIT_PAIRS, fit_ekfac, fit_kernel
from rahf.influence.formula import (
    DAMPING,
    Eigenbasis,
    conjugate_gradients,
    ekfac_solve,
    kernel_solve,
)
from rahf.influence.gradients import Part, parameter_count
from rahf.influence.hessian import hessian_product
from rahf.influence.objectives import Objective

CurvatureName = Literal["identity", "kernel", "ekfac", "cg"]
CURVATURES = get_args(CurvatureName)
CG_STEPS = 20
Solve = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Curvature:
    """The inverse of a training's damped curvature."""

    name: CurvatureName
    solve: Solve  # [n, parameters] -> the same
    # The same for single pairs, of which there are many: `cg` falls back on its preconditioner.
    solve_pairs: Solve
    notes: list[str] = field(default_factory=list)  # what a reader of the scores has to know


def fit_curvature(
    name: CurvatureName,
    objective: Objective,
    parts: Sequence[Part],
    folder: Path,
    batch_size: int,
    damping: float = DAMPING,
    fit_pairs: int = FIT_PAIRS,
    floor: float = 0.0,
) -> Curvature:
    """Return a curvature; its factors are read from `folder` or fitted into it.

    Args:
        floor: curvature that every direction has beside its own.
    """
    if name == "identity":
        return Curvature(name, _same, _same, ["identity: a dot product of gradients, not nats"])
    if name == "kernel":
        pseudo = fit_kernel(objective, parts, batch_size, folder)
        given = {"pseudo": pseudo, "count": len(objective.rows)}
        by_kernel = partial(kernel_solve, **given, damping=damping, floor=floor)
        return Curvature(name, by_kernel, by_kernel)
    bases = fit_ekfac(objective, parts, batch_size, folder, fit_pairs)
    near = partial(solve_by_parts, parts=parts, bases=bases, damping=damping, floor=floor)
    if name == "ekfac":
        return Curvature(name, near, near)
    mean = float(sum(basis.moments.sum() for basis in bases)) / parameter_count(parts)
    level, notes = damping * mean + floor, ["cg: self-influence is EK-FAC's"]

    def product(x: Tensor) -> Tensor:
        return hessian_product(objective, parts, x, batch_size) + level * x

    return Curvature(name, partial(_by_cg, product=product, near=near, notes=notes), near, notes)


def _by_cg(
    vectors: Float[Tensor, "n parameters"], product: Solve, near: Solve, notes: list[str]
) -> Float[Tensor, "n parameters"]:
    """Return the inverse of the damped Hessian times each vector, and note how near it came."""
    solved = conjugate_gradients(product, vectors, near, CG_STEPS)
    worst, cut = float(solved.residual.max()), int(solved.truncated.sum())
    notes.append(f"cg: largest residual {worst:.2g} of the query's gradient")
    if cut:
        notes.append(
            f"cg: {cut} of {len(vectors)} solutions end at a direction of negative curvature: "
            "the training has not reached a minimum there"
        )
    return solved.vectors


def _same(vectors: Tensor) -> Tensor:
    return vectors


def solve_by_parts(
    vectors: Float[Tensor, "n parameters"],
    parts: Sequence[Part],
    bases: Sequence[Eigenbasis],
    damping: float,
    floor: float,
) -> Float[Tensor, "n parameters"]:
    """Return EK-FAC's damped inverse, matrix by matrix."""
    solved = torch.empty_like(vectors)
    for part, basis in zip(parts, bases, strict=True):
        part.matrices(solved).copy_(ekfac_solve(part.matrices(vectors), basis, damping, floor))
    return solved
