"""A TopK dictionary in training: weights, Adam's moments, and how long each latent has been silent.

Trained on states that are shifted and scaled to a norm of 1 per dimension; a finished dictionary
reads states as they are. Knows no model and no file.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rahf.interpret.features.dictionary import Origin
from rahf.interpret.features.topk import Auxiliary, TopKDictionary, Weights, training_step

WARM_UP, DECAY = 0.05, 0.2
"""Shares of the training in which the learning rate rises from 0, and falls to 0."""

AUXILIARY_WEIGHT = 1 / 32
"""Of the auxiliary loss of dead latents (Gao et al. 2024, appendix A.2)."""


ROWS = 512
"""Directions that are worked on together, so that they stay in a CPU's cache."""


class Coder:
    """One dictionary in training.

    Args:
        silent: tokens since each latent was last active.
        scale: what states are divided by.
    """

    def __init__(
        self,
        weights: Weights,
        silent: Int64[Tensor, " latents"],
        scale: Float[Tensor, ""],
        k: int,
        signed: bool,
        learning_rate: float,
    ):
        self.weights, self.silent, self.scale = weights, silent, scale
        self.k, self.signed, self.learning_rate = k, signed, learning_rate
        fused = silent.device.type in ("cpu", "cuda")
        self.optimiser = torch.optim.Adam(list(weights), learning_rate, fused=fused)

    @classmethod
    def begin(
        cls,
        states: Float[Tensor, "tokens d_model"],
        latents: int,
        k: int,
        signed: bool,
        *,
        seed: int,
        learning_rate: float,
    ) -> "Coder":
        """Return a coder with random directions, centred and scaled on the first states.

        Raises:
            ValueError: more active latents than latents; states that are all equal.
        """
        if k > latents:
            raise ValueError(
                f"{k} active latents per token of {latents}: give a k of at most the latents."
            )
        mean, width = states.mean(0), states.shape[1]
        scale = (states - mean).norm(dim=1).mean() / width**0.5
        if not scale > 0:
            raise ValueError(
                "the hidden states are all equal, so there is nothing to learn: check that the "
                "adapter changes the states of the layer, and that the text is not empty."
            )
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(latents, width, generator=generator).to(states.device)
        directions = nn.functional.normalize(drawn, dim=1)
        bias = torch.zeros(latents, device=states.device)
        weights = Weights(directions.clone(), bias, directions, mean / scale)
        silent = torch.zeros(latents, dtype=torch.long, device=states.device)
        return cls(weights, silent, scale, k, signed, learning_rate)

    def step(
        self,
        states: Float[Tensor, "tokens d_model"],
        done: float,
        *,
        dead_after: int,
        auxiliary_weight: float = AUXILIARY_WEIGHT,
    ) -> float:
        """Train on a batch; return the share of its variance that is left, before the step.

        Args:
            done: share of the training that is done.
            dead_after: tokens after which a silent latent is dead.
        """
        scaled = states / self.scale
        dead = (self.silent > dead_after).nonzero().squeeze(1)
        auxiliary = Auxiliary(dead, 2 * self.k, auxiliary_weight) if auxiliary_weight else None
        step = training_step(scaled, self.weights, self.k, self.signed, auxiliary)
        for weight, gradient in zip(self.weights, step.gradients, strict=True):
            weight.grad = gradient
        directions = self.weights.directions
        keep_turning(step.gradients.directions, directions)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate * min(1.0, done / WARM_UP, (1 - done) / DECAY)
        self.optimiser.step()
        directions /= directions.norm(dim=1, keepdim=True)
        self.silent += len(states)
        self.silent[step.active] = 0
        return (step.unexplained / scaled.var(0, correction=0).mean()).item()

    def dictionary(self, origin: Origin) -> TopKDictionary:
        """Return what has been learned, for states as they are."""
        encoder, encoder_bias, directions, bias = (part.clone() for part in self.weights)
        weights = Weights(encoder, self.scale * encoder_bias, directions, self.scale * bias)
        return TopKDictionary(origin, weights, self.k, self.signed)

    def state(self) -> dict[str, Tensor]:
        """Return all tensors that `restored` needs, by name."""
        tensors = {"silent": self.silent, "scale": self.scale}
        for name, weight in self.weights._asdict().items():
            tensors[name] = weight
            for moment, value in self.optimiser.state[weight].items():
                tensors[f"{name}.{moment}"] = value
        return tensors

    @classmethod
    def restored(
        cls, state: Mapping[str, Tensor], k: int, signed: bool, learning_rate: float
    ) -> "Coder":
        """Return the coder whose `state` was kept."""
        weights = Weights(*(state[name].clone() for name in Weights._fields))
        coder = cls(weights, state["silent"].clone(), state["scale"], k, signed, learning_rate)
        for name, weight in weights._asdict().items():
            moments = {key: state[key] for key in state if key.startswith(f"{name}.")}
            coder.optimiser.state[weight] = {
                key.removeprefix(f"{name}."): value.clone() for key, value in moments.items()
            }
        return coder


def keep_turning(
    gradients: Float[Tensor, "latents d_model"], directions: Float[Tensor, "latents d_model"]
) -> None:
    """Remove from gradients the part along their directions, whose length is fixed."""
    for part, rows in zip(gradients.split(ROWS), directions.split(ROWS), strict=True):
        part.addcmul_(rows, (part * rows).sum(1, keepdim=True), value=-1)
