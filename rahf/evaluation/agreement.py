"""How far judges agree over answers: whether they call the same changes an improvement.

Length is reported beside them as a judge that prefers the longer answer: what agrees with it nearly
always, or nearly never, may be reading length only. Knows numbers only.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rahf.evaluation.intervals import share_estimate

LENGTH = "length"
"""The rule reported beside several judges: characters of an answer."""

Scores = Sequence[Sequence[float | None]]
"""A score a prompt, for each model that answered the prompts."""


def changes(scores: Scores, base: Sequence[float | None], sign: int) -> np.ndarray:
    """Return by how much each answer is nearer to what is wanted than the base's; nan: unread."""
    return sign * (np.array(scores, dtype=float) - np.array(base, dtype=float))


def agreements(by_judge: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return, for any two judges, the share of answers whose change they call by the same name.

    Answers that one of them calls unchanged, or could not be read by one, do not count. A share is
    averaged over a prompt's answers first, and its interval is one over prompts.

    Args:
        by_judge: the `changes` of the same answers.
    """
    found = []
    for one, other in combinations(by_judge, 2):
        product = np.sign(by_judge[one]) * np.sign(by_judge[other])
        decided = np.abs(product) == 1
        counts = decided.sum(0)
        shares = (product == 1).sum(0)[counts > 0] / counts[counts > 0]
        estimate = share_estimate(shares.tolist())
        record = {"judges": [one, other], "answers": int(counts.sum()), "prompts": len(shares)}
        found.append(record | (estimate.as_dict() if estimate else {}))
    return found
