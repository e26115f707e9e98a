"""How sure the reached share of the shift is: intervals over held-out pairs.

Knows sums of movement; knows no model and no method.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from accelerate.utils import gather_object
from jaxtyping import Float, Int
from torch import Tensor

from rahf.evaluation.intervals import Estimate, mean_estimate, ratio_estimate
from rahf.objective import Progress

Sums = Float[np.ndarray, "pairs layers"]


class PairProgress:
    """Sums of the movement of each held-out pair, both of its responses together."""

    def __init__(self) -> None:
        self._sums: dict[int, np.ndarray] = {}  # by row of the pair: [3, layers], as in Progress

    def add(self, rows: Int[Tensor, " responses"], made: Progress) -> None:
        """Add the progress of responses, [layers, responses]."""
        columns = (each.T.tolist() for each in made)
        for row, *sums in zip(rows.tolist(), *columns, strict=True):
            self._sums[row] = self._sums.get(row, 0.0) + np.asarray(sums)

    def take(self, layers: Sequence[int]) -> dict[str, float]:
        """Return the ends of the intervals since the last call, over the pairs of all ranks."""
        whole: dict[int, np.ndarray] = {}
        for row, sums in gather_object(list(self._sums.items())):
            whole[row] = whole.get(row, 0.0) + sums
        self._sums = {}
        if not whole:
            return {}
        dot, moved, full = np.stack([whole[row] for row in sorted(whole)], axis=1)
        found = {}
        for place, layer in enumerate(layers):
            of_layer = (dot[:, place], moved[:, place], full[:, place])
            for name, estimate in estimates(*of_layer):
                for end in ("low", "high"):
                    value = getattr(estimate, end)
                    if np.isfinite(value):
                        found[f"repr/{name}_{end}/layer_{layer}"] = value
        return found


def estimates(
    dot: Float[np.ndarray, " pairs"],
    moved: Float[np.ndarray, " pairs"],
    full: Float[np.ndarray, " pairs"],
) -> Iterator[tuple[str, Estimate]]:
    """Yield the reached share and the cosine of a layer, each where it is defined.

    The cosine of sums is no ratio: its interval is that of the mean of pseudo-values, a pair's
    share in its linear change (Cochran 1977, 6.4, by the delta method).
    """
    reached = ratio_estimate(dot, full)
    if reached is not None:
        yield "reached", reached
    if not (moved.sum() > 0 and full.sum() > 0):
        return
    cosine = dot.sum() / np.sqrt(moved.sum() * full.sum())
    change = dot / np.sqrt(moved.sum() * full.sum())
    change = change - cosine / 2 * (moved / moved.sum() + full / full.sum())
    found = mean_estimate(cosine + len(dot) * change, -1.0, 1.0)
    if found is not None:
        yield "cosine", found
