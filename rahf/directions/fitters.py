"""Fitters: samples in, one vector per layer out, in one pass and with memory that does not grow
with the rows.

Every vector is as long as the mean difference is along it, so that alpha 1 means the same for all
of them: the distance between the two sides along that vector. Knows samples; knows no model.
"""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rahf.directions.states import Samples


class Fitter(Protocol):
    """Gathers samples; `vectors` may be asked at any time."""

    def update(self, samples: Samples) -> None: ...

    def vectors(self) -> Float[Tensor, "layers d_model"]: ...


class MeanDifference:
    """Mean of positive minus negative, in float64."""

    def __init__(self):
        self._sum: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0

    def update(self, samples: Samples) -> None:
        weight = samples.difference_weight.double()
        self._sum = self._sum + torch.einsum("ltd,t->ld", samples.difference.double(), weight)
        self._weight = self._weight + weight.sum()

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

    A batch moves the Gaussian posterior of what came before to its Laplace approximation (recursive
    Laplace: Spiegelhalter and Lauritzen 1990), whose mode is found by Newton steps in the space of
    the batch (Rasmussen and Williams 2006, algorithm 3.1). So nothing is read twice, and memory is
    one d_model x d_model covariance per layer.
    """

    ROWS = 64  # samples in one step, which bounds its matrices
    STEPS = 12  # Newton steps; the mode of a few dozen samples is found in half as many
    # Prior standard deviation of the logit of a typical state, in units in which the states of the
    # first batch have a root mean square of 1 around their mean.
    SPREAD = 3.0

    def __init__(self):
        self._mean = MeanDifference()
        self._center: Tensor | None = None

    def update(self, samples: Samples) -> None:
        self._mean.update(samples)
        states = torch.cat([samples.positive, samples.negative], 1)
        weight = torch.cat([samples.positive_weight, samples.negative_weight])
        label = torch.zeros_like(weight)
        label[: len(samples.positive_weight)] = 1
        if self._center is None:
            self._begin(states, weight)
        scaled = nn.functional.pad((states - self._center) / self._scale, (0, 1), value=1.0)
        # Both sides in every step: the order is that of positive, negative, positive, ...
        order = torch.argsort(
            torch.cat([torch.arange(count) / count for count in _counts(samples)]), stable=True
        )
        for part in order.to(weight.device).split(self.ROWS):
            self._step(scaled[:, part], label[part], weight[part])

    def _begin(self, states: Tensor, weight: Tensor) -> None:
        layers, _, width = states.shape
        share = (weight / weight.sum())[:, None]
        self._center = (states * share).sum(1, keepdim=True)
        square = ((states - self._center).square() * share).sum((1, 2))
        self._scale = (square / width).sqrt()[:, None, None]
        self._mode = states.new_zeros(layers, width + 1)
        prior = states.new_full((width + 1,), self.SPREAD**2 / width)
        prior[-1] = self.SPREAD**2  # the intercept's feature is 1
        self._covariance = prior.diag().repeat(layers, 1, 1)

    def _step(self, states: Tensor, label: Tensor, weight: Tensor) -> None:
        spanned = states @ self._covariance  # [layers, rows, d_model + 1]
        kernel = spanned @ states.transpose(1, 2)
        before = (states @ self._mode[..., None]).squeeze(-1)
        dual = torch.zeros_like(before)
        for _ in range(self.STEPS):
            logit = before + (kernel @ dual[..., None]).squeeze(-1)
            curvature, factor = self._curvature(logit, weight, kernel)
            pull = curvature * (logit - before) + weight * (label - logit.sigmoid())
            root = curvature.sqrt()
            inner = root * (kernel @ pull[..., None]).squeeze(-1)
            dual = pull - root * torch.cholesky_solve(inner[..., None], factor).squeeze(-1)
        self._mode = self._mode + (dual[:, None] @ spanned).squeeze(1)
        logit = before + (kernel @ dual[..., None]).squeeze(-1)
        curvature, factor = self._curvature(logit, weight, kernel)
        learned = torch.linalg.solve_triangular(
            factor, curvature.sqrt()[..., None] * spanned, upper=False
        )
        self._covariance = self._covariance - learned.transpose(1, 2) @ learned

    @staticmethod
    def _curvature(logit: Tensor, weight: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """Second derivative of the loss per sample, and the Cholesky factor of I + sKs, s = its
        root.
        """
        probability = logit.sigmoid()
        curvature = weight * probability * (1 - probability)
        root = curvature.sqrt()
        inner = root[:, :, None] * kernel * root[:, None, :]
        identity = torch.eye(inner.shape[-1], device=inner.device, dtype=inner.dtype)
        return curvature, torch.linalg.cholesky(inner + identity)

    def vectors(self) -> Float[Tensor, "layers d_model"]:
        return along(self._mean.vectors(), self._mode[:, :-1])


def _counts(samples: Samples) -> tuple[int, int]:
    return len(samples.positive_weight), len(samples.negative_weight)


def along(
    mean: Float[Tensor, "layers d_model"], axes: Float[Tensor, "layers d_model"]
) -> Float[Tensor, "layers d_model"]:
    """The mean difference projected on each layer's axis, so that its sign and length are given by
    the data and not by the axis.
    """
    axes = nn.functional.normalize(axes, dim=-1)
    return (mean * axes).sum(-1, keepdim=True) * axes


FITTERS: dict[str, type[Fitter]] = {
    "mean": MeanDifference,
    "principal": PrincipalDifference,
    "probe": LogisticProbe,
}
