"""The idea of influence as pure functions: how much a query changes if a training pair is left out.

A training minimises the mean loss of its N pairs, L = (1/N) sum_i L_i, with the Hessian H at the
end. Leaving pair i out moves the minimum by (1/N) H^-1 grad L_i, to first order (Koh and Liang
2017; Grosse et al. 2023, arXiv 2308.03296, section 2), and so the query f by

    change_i  =  (1/N) grad f . (H + damping)^-1 . grad L_i  =  - influence_i / N

in the unit of f, which is nats for a log-probability. A part of the damping follows from the length
of the training, see `length.py`. A negative change: without the pair the query would be lower, so
the pair supports it. H is replaced by

    identity  1: the change is a dot product of gradients, without a unit of its own
    kernel    the Gauss-Newton matrix (1/N) sum_i g_i g_i^T, solved through its N x N Gram matrix
    ekfac     the same, diagonal in the Kronecker-factored eigenbasis of each matrix
    cg        the Hessian itself, by conjugate gradients that EK-FAC preconditions

where g_i is a pseudo-gradient: its second moment is the Gauss-Newton matrix of pair i. Vectors are
flat: [..., parameters]. Knows tensors; knows no model and no loss.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

DAMPING = 0.1
"""Damping as a share of the mean curvature (arXiv 2308.03296, section 2.2)."""


class Eigenbasis(NamedTuple):
    """The curvature of one matrix [outputs, inputs], diagonal in a Kronecker-factored basis."""

    outputs: Float[Tensor, "outputs outputs"]  # eigenvectors of the covariance of output gradients
    inputs: Float[Tensor, "inputs inputs"]  # eigenvectors of the covariance of inputs
    moments: Float[Tensor, "outputs inputs"]  # mean square of the pairs' rotated gradients


def change_if_left_out(
    solved: Float[Tensor, "queries parameters"],
    gradients: Float[Tensor, "pairs parameters"],
    count: int,
) -> Float[Tensor, "pairs queries"]:
    """Return the change of each query if a pair were left out.

    Args:
        solved: the curvature's inverse times the gradient of each query.
        gradients: of each pair's loss.
        count: pairs of the training, N.
    """
    return gradients @ solved.T / count


def rotate(
    matrices: Float[Tensor, "n outputs inputs"], basis: Eigenbasis
) -> Float[Tensor, "n outputs inputs"]:
    """Return matrices in the eigenbasis."""
    return basis.outputs.T @ matrices @ basis.inputs


def ekfac_solve(
    matrices: Float[Tensor, "n outputs inputs"],
    basis: Eigenbasis,
    damping: float = DAMPING,
    floor: float = 0.0,
) -> Float[Tensor, "n outputs inputs"]:
    """Return the inverse of the damped curvature times each matrix (arXiv 2308.03296, eq. 20)."""
    curvature = basis.moments + damping * basis.moments.mean() + floor
    return basis.outputs @ (rotate(matrices, basis) / curvature) @ basis.inputs.T


def kernel_solve(
    vectors: Float[Tensor, "n parameters"],
    pseudo: Float[Tensor, "examples parameters"],
    count: int,
    damping: float = DAMPING,
    floor: float = 0.0,
) -> Float[Tensor, "n parameters"]:
    """Return the inverse of ((1/N) G^T G + l) times each vector, by Woodbury's identity:
    (1/l) (v - G^T (N l + G G^T)^-1 G v).

    Args:
        pseudo: G, the pseudo-gradients.
        count: pairs of the training, N.
        damping: l as a share of the mean diagonal entry of (1/N) G^T G.
        floor: what is added to l.
    """
    level = damping * pseudo.square().sum() / count / pseudo.shape[1] + floor
    gram = (pseudo @ pseudo.T).double()
    gram.diagonal().add_(count * level.double())
    inner = torch.linalg.solve(gram, (pseudo @ vectors.T).double()).to(vectors)
    return (vectors - inner.T @ pseudo) / level


class Solved(NamedTuple):
    """The result of conjugate gradients."""

    vectors: Float[Tensor, "n parameters"]
    residual: Float[Tensor, " n"]  # norm of what is left, as a share of the right side's
    truncated: Bool[Tensor, " n"]  # a direction of negative curvature ended the iteration


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right: Float[Tensor, "n parameters"],
    precondition: Callable[[Tensor], Tensor],
    steps: int,
    tolerance: float = 1e-3,
) -> Solved:
    """Solve product(x) = right for each row by preconditioned conjugate gradients.

    Where the curvature along a direction is not positive, the iteration of that row ends with what
    it has (Steihaug 1983), at least the preconditioned right side.

    Args:
        product: rows -> the symmetric matrix times each row.
        precondition: rows -> about its inverse times each row.
    """
    found, left = torch.zeros_like(right), right.clone()
    near = precondition(left)
    along, energy = near.clone(), (left * near).sum(1)
    size, begun = right.norm(dim=1).clamp(min=1e-30), torch.zeros_like(energy, dtype=torch.bool)
    active, truncated = ~begun, begun.clone()
    for _ in range(steps):
        moved = product(along)
        curvature = (along * moved).sum(1)
        negative = active & (curvature <= 0)
        found = torch.where((negative & ~begun).unsqueeze(1), along, found)
        truncated, active = truncated | negative, active & ~negative
        step = torch.where(active, energy / curvature, 0.0).unsqueeze(1)
        found, left, begun = found + step * along, left - step * moved, begun | active
        active = active & (left.norm(dim=1) > tolerance * size)
        if not active.any():
            break
        near = precondition(left)
        new = (left * near).sum(1)
        along, energy = near + (new / energy).unsqueeze(1) * along, new
    return Solved(found, left.norm(dim=1) / size, truncated)
