"""The chart of a comparison: a line a row, change of behaviour against what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rahf.report.curves import Point, tradeoff_figure

COST_LABELS = {
    "loss": "loss of ability (nats per token on unrelated text)",
    "kl": "KL from the base on unrelated text (nats per token)",
}

CHANGE_LABELS = {
    False: "change of behaviour (the judge's mean)",
    True: "wins over the base's answers, above one half",
}


def draw_curves(lines: Mapping[str, Sequence[Point]], path: Path, cost: str, *, wins: bool) -> None:
    """Draw the curve of every row.

    Args:
        wins: whether a score is a win over the base's answer.
    """
    tradeoff_figure(lines, path, cost=COST_LABELS[cost], change=CHANGE_LABELS[wins])
