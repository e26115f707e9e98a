"""A logistic regression, and the area under the ROC curve of its scores with an interval.

Knows numbers only.
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from rahf.evaluation.intervals import Estimate, Z

STEPS = 25
"""Of Newton's method, at most; some eight are usual."""

HALVINGS = 60
"""Of the distance to an end of an interval: beyond the digits of a double."""


def logistic(
    features: Float64[Tensor, "texts features"], labels: Bool[Tensor, " texts"], ridge: float
) -> Float64[Tensor, " weights"]:
    """Return weights and intercept of a logistic regression with a ridge, by Newton's method."""
    inputs = torch.nn.functional.pad(features, (0, 1), value=1.0)
    penalty = torch.full_like(inputs[0], ridge * len(features))
    penalty[-1] = 1e-6
    weights = torch.zeros_like(penalty)
    for _ in range(STEPS):
        chance = (inputs @ weights).sigmoid()
        gradient = inputs.T @ (chance - labels.double()) + penalty * weights
        curvature = (chance * (1 - chance)).clamp(min=1e-6)
        hessian = inputs.T @ (curvature[:, None] * inputs) + penalty.diag()
        step = torch.linalg.solve(hessian, gradient)
        weights = weights - step
        if step.abs().max() < 1e-8:
            break
    return weights


def area(scores: Float64[Tensor, " texts"], labels: Bool[Tensor, " texts"]) -> Estimate:
    """Return the area under the ROC curve with its 95 % interval.

    Newcombe's method 5 (2006, Statistics in Medicine 25, p. 559): an end of the interval is an area
    whose own standard error (Hanley and McNeil 1982) just reaches the area found. It is no point
    at 0 or 1, where DeLong's interval is.
    """
    above, below = scores[labels], scores[~labels]
    higher = (above[:, None] > below).double() + (above[:, None] == below).double() / 2
    found, sizes = higher.mean().item(), (len(above), len(below))
    return Estimate(found, _farthest(found, 0.0, sizes), _farthest(found, 1.0, sizes))


def _farthest(found: float, end: float, sizes: tuple[int, int]) -> float:
    """Return the area farthest from the one found, towards an end, that is no more than Z of its
    standard errors away.
    """
    near, far = found, end
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        inside = abs(middle - found) <= Z * _variance(middle, sizes) ** 0.5
        near, far = (middle, far) if inside else (near, middle)
    return near


def _variance(area: float, sizes: tuple[int, int]) -> float:
    """Return the variance of an area, with the mean number of texts in the place of each."""
    others = sum(sizes) / 2 - 1
    spread = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) * spread / (sizes[0] * sizes[1])
