"""The trade-off curve: how much behaviour a method changes for how much general ability it costs.

A method is a line of points, one a strength, from the untouched base at the origin. Knows numbers,
no model.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple


class Point(NamedTuple):
    """One strength of a method, against the base."""

    cost: float  # general ability lost, for instance nats per token on unrelated text
    change: float  # of behaviour, as the judge sees it
    low: float  # 95 % interval of the change
    high: float
    label: str = ""  # the strength


def change_within(points: Iterable[tuple[float, float]], cost: float) -> float:
    """Return the most change that (cost, change) points bring for at most `cost`.

    Lines between the points and from the base at the origin count. A gain of ability is no cost.
    """
    line = [(0.0, 0.0), *sorted((max(spent, 0.0), change) for spent, change in points)]
    reached = [change for spent, change in line if spent <= cost]
    for (before, low), (after, high) in pairwise(line):
        if before < cost < after:
            reached.append(low + (cost - before) / (after - before) * (high - low))
    return max(reached)


def tradeoff_figure(
    methods: Mapping[str, Sequence[Point]], path: Path, *, cost: str, change: str
) -> None:
    """Draw one line a method from the base at the origin, with intervals and strengths.

    Args:
        cost: label of the horizontal axis.
        change: label of the vertical axis.
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
    axes.set(xlabel=cost, ylabel=change, title="more change for less loss: up and to the left")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
