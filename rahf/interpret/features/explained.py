"""How much of hidden states, or of their differences, a guess accounts for.

Knows numbers only.
"""

import torch
from jaxtyping import Float
from torch import Tensor


class Explained:
    """How much of a quantity a guess accounts for, summed over tokens."""

    def __init__(self):
        self.energy = self.left = 0.0
        self.sums: Tensor | float = 0.0
        self.tokens = 0

    def add(
        self, wanted: Float[Tensor, "tokens d_model"], guess: Float[Tensor, "tokens d_model"]
    ) -> None:
        self.energy += wanted.double().square().sum().item()
        self.left += (wanted - guess).double().square().sum().item()
        self.sums = self.sums + wanted.double().sum(0).cpu()
        self.tokens += len(wanted)

    def share(self) -> float:
        """Return the share of the squared norm, in which a constant counts."""
        return 1 - self.left / self.energy if self.energy else 0.0

    def variance(self) -> float:
        """Return the share of the variance around the mean, in which a constant counts nothing."""
        around = self.energy - (torch.as_tensor(self.sums).square().sum() / self.tokens).item()
        return 1 - self.left / around if around > 1e-9 * self.energy else 0.0

    def shares(self) -> dict[str, float]:
        return {"of_squared_norm": self.share(), "of_variance": self.variance()}
