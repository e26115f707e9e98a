"""The chart of a comparison: how much behaviour a method changes for how much ability it costs.

A method is a line of points, one a strength, from the untouched base at the origin.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Point(NamedTuple):
    """One strength of a method, against the base."""

    cost: float  # ability loss, for instance nats per token on unrelated text
    change: float  # of behaviour, by the judge
    low: float  # 95 % interval of the change
    high: float
    label: str = ""  # the strength


COST_LABELS = {
    "loss": "ability loss (nats per token on unrelated text)",
    "kl": "KL from the base on unrelated text (nats per token)",
}

CHANGE_LABELS = {
    False: "change of behaviour (the judge's mean)",
    True: "wins over the base's answers, above one half",
}


def tradeoff_chart(
    methods: Mapping[str, Sequence[Point]], path: Path, cost: str, *, wins: bool
) -> None:
    """Draw one line a method from the base at the origin, with intervals and strengths.

    Args:
        cost: a key of COST_LABELS.
        wins: whether a score is a win over the base's answer.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes: Any = figure.subplots()
    axes.axhline(0, color="#999", linewidth=0.8)
    axes.axvline(0, color="#999", linewidth=0.8)
    for name, points in methods.items():
        line = sorted(points)
        x = [0.0, *(point.cost for point in line)]
        y = [0.0, *(point.change for point in line)]
        below = [0.0, *(point.change - point.low for point in line)]
        above = [0.0, *(point.high - point.change for point in line)]
        axes.errorbar(x, y, yerr=[below, above], marker="o", capsize=2, label=name)
        for point in line:
            place = (point.cost, point.change)
            axes.annotate(point.label, place, (4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel=COST_LABELS[cost], ylabel=CHANGE_LABELS[wins])
    axes.set_title("more change for less loss: up and to the left")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
