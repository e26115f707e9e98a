"""What an explainer is: examples and a vector in, one sentence out.

Knows no way of explaining.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor

from rahf.interpret.explanations.examples import Example
from rahf.interpret.explanations.units import Unit


class Case(NamedTuple):
    """A unit to explain."""

    unit: Unit
    shown: Sequence[Example]  # activating windows and others
    vector: Float[Tensor, " d_model"]  # decoder direction, or the direction itself


class Explanation(NamedTuple):
    """One sentence that says when a unit is active."""

    text: str | None  # None: the explainer failed
    tokens: tuple[int, int] | None = None  # read and written for it; None: no model was asked


class Explainer(Protocol):
    """Explains units, all of them at once so that it may ask for several at the same time."""

    id: str

    def explain(self, cases: Sequence[Case]) -> list[Explanation]: ...
