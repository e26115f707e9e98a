"""What cheaper means show of the same change: mean difference, principal components, a probe.

They are fitted to one half of the prompts and measured on the other. Sparse dictionaries do not
consistently beat them (arXiv 2502.16681), so what a latent shows is compared with what they show.
Knows hidden states; knows no model and no file.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from rahf.directions.evidence import area_under_curve
from rahf.interpret.features.explained import Explained

COMPONENTS = 16
RIDGE = 1e-2
"""Share of the mean variance that is added to each dimension before the probe is solved for."""

SEES = 0.5
"""Share of the effect, |cosine| or |correlation| from which a rival shows a latent's movement."""

CERTAIN = 0.05
"""P value of the correlation below which the divergence shows it: of few responses any is large."""


class Fitted(NamedTuple):
    """Rivals fitted to one half of the prompts."""

    mean: Float64[Tensor, " d_model"]  # of the per-token differences
    components: Float64[Tensor, "components d_model"]  # orthonormal, around that mean
    probe: Float64[Tensor, " d_model"]  # base against aligned, linear discriminant

    def guesses(
        self, difference: Float64[Tensor, "tokens d_model"]
    ) -> dict[str, Float64[Tensor, "tokens d_model"]]:
        """Return what is left of differences in the mean, and in it and leading components."""
        found = {"mean": self.mean.expand_as(difference)}
        for size in _sizes(len(self.mean)):
            axes = self.components[:size]
            found[str(size)] = self.mean + (difference - self.mean) @ axes.T @ axes
        return found


class Rivals:
    """Gathers one half of the prompts, fits, and measures on the other half."""

    def __init__(self, d_model: int):
        self._tokens, self._outer, self._within = 0, *torch.zeros(2, d_model, d_model).double()
        self._base, self._aligned = torch.zeros(2, d_model).double()
        self._fitted: Fitted | None = None
        self.explained = {name: Explained() for name in ("mean", *map(str, _sizes(d_model)))}
        self._scores: dict[tuple[str, int], list[Tensor]] = {}

    def fit_to(
        self, base: Float[Tensor, "tokens d_model"], aligned: Float[Tensor, "tokens d_model"]
    ) -> None:
        """Add tokens of the half that is fitted to."""
        base, aligned = base.double().cpu(), aligned.double().cpu()
        difference = aligned - base
        self._outer += difference.T @ difference
        self._within += base.T @ base + aligned.T @ aligned
        self._base += base.sum(0)
        self._aligned += aligned.sum(0)
        self._tokens += len(base)

    def fitted(self) -> Fitted:
        """Return the fitted rivals.

        Raises:
            ValueError: nothing was added to fit them to.
        """
        if self._fitted is None:
            self._fitted = self._fit()
        return self._fitted

    def _fit(self) -> Fitted:
        if self._tokens == 0:
            raise ValueError(
                "no tokens to fit the rivals to: give responses to at least 2 prompts."
            )
        means = [sums / self._tokens for sums in (self._base, self._aligned)]
        mean = means[1] - means[0]
        around = self._outer / self._tokens - torch.outer(mean, mean)
        components = torch.linalg.eigh(around).eigenvectors.flip(1)[:, :COMPONENTS].T
        within = self._within / (2 * self._tokens) - sum(torch.outer(m, m) for m in means) / 2
        within.diagonal().add_(RIDGE * within.diagonal().mean() + 1e-12)
        return Fitted(mean, components, torch.linalg.solve(within, mean))

    def measure(
        self, base: Float[Tensor, "tokens d_model"], aligned: Float[Tensor, "tokens d_model"]
    ) -> None:
        """Measure the fitted rivals on tokens of the other half."""
        fitted, base, aligned = self.fitted(), base.double().cpu(), aligned.double().cpu()
        for name, guess in fitted.guesses(aligned - base).items():
            self.explained[name].add(aligned - base, guess)
        for name, axis in (("mean", fitted.mean), ("probe", fitted.probe)):
            for side, states in enumerate((base, aligned)):
                self._scores.setdefault((name, side), []).append(states @ axis)

    def separability(self) -> dict[str, float]:
        """Return how well the mean and the probe distinguish single tokens: held-out AUC."""
        found = {}
        for name in dict.fromkeys(name for name, _ in self._scores):
            below, above = (torch.cat(self._scores[name, side]) for side in (0, 1))
            weights = torch.ones_like(below)
            found[name] = area_under_curve(above, weights, below, weights)
        return found


def _sizes(d_model: int) -> list[int]:
    """Return the numbers of principal components that are measured."""
    return [size for size in (1, 4, COMPONENTS) if size < d_model]


class Seen(NamedTuple):
    """How much of a latent's movement a rival shows."""

    mean: float  # share of its effect that the mean difference makes, added to the base's states
    principal: float  # the same of the difference inside of the leading principal components
    probe: float  # cosine of its direction with the probe
    divergence: float  # correlation over responses of its change with the token KL
    divergence_p: float  # two-sided p value of that correlation

    def by(self) -> list[str]:
        """Return the rivals that show it."""
        shares = {"mean": self.mean, "principal": self.principal}
        divergence = abs(self.divergence) if self.divergence_p < CERTAIN else 0.0
        sizes = {"probe": abs(self.probe), "divergence": divergence}
        return [name for name, value in {**shares, **sizes}.items() if value >= SEES]


class Reproduced:
    """What a latent's activation does where a rival's guess takes the place of the difference.

    A direction that is at an angle to the mean difference may still move by nothing but it.
    """

    def __init__(self, latents: int):
        self._change = torch.zeros(latents).double()
        self._guessed = {"mean": torch.zeros(latents).double()}

    def add(
        self,
        base: Float64[Tensor, " latents"],
        aligned: Float64[Tensor, " latents"],
        guessed: dict[str, Float64[Tensor, " latents"]],
    ) -> None:
        """Add activations summed over tokens: of the base, the aligned model, and each guess."""
        self._change += aligned - base
        for name, sums in guessed.items():
            total = self._guessed.setdefault(name, torch.zeros_like(self._change))
            total += sums - base

    def share(self, name: str, latent: int) -> float:
        """Return the share of a latent's effect that a guess makes; 0 where it has none."""
        change = self._change[latent].item()
        guessed = self._guessed.get(name, torch.zeros_like(self._change))
        return guessed[latent].item() / change if change else 0.0


def seen(
    fitted: Fitted,
    reproduced: Reproduced,
    latent: int,
    direction: Float[Tensor, " d_model"],
    divergence: float,
    divergence_p: float,
) -> Seen:
    """Return what the rivals show of a latent.

    Args:
        direction: its decoder direction.
        divergence: correlation of its change with the token KL.
        divergence_p: its p value.
    """
    direction = direction.double().cpu()
    cosine = nn.functional.cosine_similarity(direction, fitted.probe, dim=0).item()
    sizes = _sizes(len(fitted.mean))
    principal = reproduced.share(str(sizes[-1]), latent) if sizes else 0.0
    mean = reproduced.share("mean", latent)
    return Seen(mean, principal, cosine, divergence, divergence_p)
