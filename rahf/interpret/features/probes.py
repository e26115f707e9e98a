"""A logistic regression, and the area under the ROC curve of its scores with an interval.

Knows numbers only.
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from rahf.evaluation.intervals import Estimate, Z

STEPS = 25
"""Of Newton's method, at most; some eight are usual."""


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
    """Return the area under the ROC curve with DeLong's interval (DeLong et al. 1988)."""
    above, below = scores[labels], scores[~labels]
    higher = (above[:, None] > below).double() + (above[:, None] == below).double() / 2
    mean = higher.mean().item()
    parts = (higher.mean(1).var(correction=1) / len(above), higher.mean(0).var() / len(below))
    half = Z * float(sum(parts)) ** 0.5
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half))
