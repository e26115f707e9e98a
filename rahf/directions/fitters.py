"""Fitters: samples in, one vector per layer out, in one pass and with memory that does not grow
with the rows.

Every vector is as long as the mean difference is along it, so that alpha 1 means the same for all
of them: the distance between the two sides along that vector. Knows samples; knows no model.
"""

from typing import NamedTuple, Protocol

import torch
from accelerate.utils import reduce
from jaxtyping import Float
from torch import Tensor, nn

from rahf.directions.states import Samples


class Fitter(Protocol):
    """Gathers samples; `vectors` may be called at any time."""

    def update(self, samples: Samples) -> None: ...

    def vectors(self) -> Float[Tensor, "layers d_model"]: ...


class Differences(NamedTuple):
    """Differences of contrasting states, where nothing else is known of them."""

    difference: Float[Tensor, "layers differences d_model"]
    difference_weight: Float[Tensor, " differences"]


class MeanDifference:
    """Mean of positive minus negative, in float64."""

    def __init__(self):
        self._sum: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0

    @property
    def weight(self) -> float:
        """Return the weight of all differences so far."""
        return float(self._weight)

    def update(self, samples: Samples | Differences) -> None:
        weight = samples.difference_weight.double()
        self._sum = self._sum + torch.einsum("ltd,t->ld", samples.difference.double(), weight)
        self._weight = self._weight + weight.sum()

    def reduce(self) -> None:
        """Add up what every rank has read."""
        self._sum, self._weight = reduce((self._sum, self._weight), reduction="sum")

    def vectors(self) -> Float[Tensor, "layers d_model"]:
        return (self._sum / self._weight).float()


class PrincipalDifference:
    """The axis along which the differences are largest: first eigenvector of their uncentred second
    moment (RepE, arXiv 2310.01405, section 3.1: PCA of differences whose signs do not matter).

    Memory: a d_model x d_model matrix per layer.
    """

    def __init__(self):
        self._mean = MeanDifference()
        self._moment: Tensor | float = 0.0

    def update(self, samples: Samples) -> None:
        self._mean.update(samples)
        weighted = samples.difference * samples.difference_weight[:, None]
        self._moment = self._moment + (weighted.transpose(1, 2) @ samples.difference).double()

    def vectors(self) -> Float[Tensor, "layers d_model"]:
        # The largest eigenvalue comes last.
        axes = [torch.linalg.eigh(moment).eigenvectors[:, -1] for moment in self._moment]
        return along(self._mean.vectors(), torch.stack(axes).float())


class LogisticProbe:
    """Normal vector of a Bayesian logistic regression of the side on the state, with intercept.

    A batch moves the Gaussian posterior of the batches before it to its Laplace approximation
    (recursive Laplace: Spiegelhalter and Lauritzen 1990). Newton steps find the mode in the space
    of the batch: mode + covariance @ states.T @ dual. Nothing is read twice, and memory is one
    d_model x d_model covariance per layer.
    """

    ROWS = 64  # samples in one step, which bounds its matrices
    STEPS = 12  # Newton steps; the mode of a few dozen samples is found in half as many
    # Prior standard deviation of the logit of a typical state, in units in which the states of the
    # first batch have a root mean square of 1 around their mean.
    SPREAD = 3.0

    def __init__(self):
        self._mean = MeanDifference()
        self._mode: Tensor | None = None

    def update(self, samples: Samples) -> None:
        self._mean.update(samples)
        sides = (samples.positive, samples.negative)
        weights = (samples.positive_weight, samples.negative_weight)
        if self._mode is None:
            self._begin(torch.cat(sides, 1), torch.cat(weights))
        steps = -(-sum(map(len, weights)) // self.ROWS)
        parts = [side.tensor_split(steps, dim=1) for side in sides]
        parts += [weight.tensor_split(steps) for weight in weights]
        for positive, negative, *weight in zip(*parts, strict=True):
            self._step(positive, negative, torch.cat(weight)[:, None])

    def _begin(self, states: Tensor, weight: Tensor) -> None:
        share, width = weight / weight.sum(), states.shape[2]
        self._center = torch.einsum("ltd,t->ld", states, share)[:, None]
        square = (states - self._center).square().mean(-1) @ share
        self._scale = square.sqrt()[:, None, None]
        prior = states.new_tensor([self.SPREAD**2 / width] * width + [self.SPREAD**2])
        self._covariance = prior.diag().repeat(len(states), 1, 1)
        self._mode = states.new_zeros(len(states), width + 1, 1)

    def _step(self, positive: Tensor, negative: Tensor, weight: Tensor) -> None:
        states = (torch.cat([positive, negative], 1) - self._center) / self._scale
        states = nn.functional.pad(states, (0, 1), value=1.0)
        label = torch.zeros_like(weight)
        label[: positive.shape[1]] = 1
        spanned = states @ self._covariance  # [layers, rows, d_model + 1]
        kernel, before = spanned @ states.mT, states @ self._mode
        dual = torch.zeros_like(before)
        for _ in range(self.STEPS):
            probability = (before + kernel @ dual).sigmoid()
            curvature = weight * probability * (1 - probability)
            system = torch.eye(len(weight), device=weight.device) + curvature * kernel
            dual = dual + torch.linalg.solve(system, weight * (label - probability) - dual)
        self._mode = self._mode + spanned.mT @ dual
        learned = torch.linalg.solve(system, curvature * spanned)
        self._covariance = self._covariance - spanned.mT @ learned

    def vectors(self) -> Float[Tensor, "layers d_model"]:
        return along(self._mean.vectors(), self._mode[:, :-1, 0])


def along(
    mean: Float[Tensor, "layers d_model"], axes: Float[Tensor, "layers d_model"]
) -> Float[Tensor, "layers d_model"]:
    """Return the mean difference projected on each layer's axis, so that its sign and length are
    given by the data and not by the axis.
    """
    axes = nn.functional.normalize(axes, dim=-1)
    return (mean * axes).sum(-1, keepdim=True) * axes


FITTERS: dict[str, type[Fitter]] = {
    "mean": MeanDifference,
    "principal": PrincipalDifference,
    "probe": LogisticProbe,
}
