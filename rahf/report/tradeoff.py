"""The trade-off curve: how much behaviour a method changes for how much general ability it costs.

A method is a line of points, one a strength, from the untouched base at the origin. Reads figures,
never loads a model.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rahf.report.tables import markdown


class Point(NamedTuple):
    """One strength of a method, against the base."""

    cost: float  # general ability lost, for instance nats per token on unrelated text
    change: float  # of behaviour, as the judge sees it
    low: float  # 95 % interval of the change
    high: float
    label: str = ""  # the strength


def points_of(records: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[Point]]:
    """Records with `method`, `strength`, `cost`, `change`, and `low` and `high` where there is an
    interval -> points by method.

    Raises:
        ValueError: a record lacks one of the first four; there is none.
    """
    methods: dict[str, list[Point]] = {}
    for place, record in records:
        missing = {"method", "strength", "cost", "change"} - record.keys()
        if missing:
            raise ValueError(f"{place}: no {', '.join(sorted(missing))}; has {', '.join(record)}")
        change = record["change"]
        interval = record.get("low", change), record.get("high", change)
        point = Point(record["cost"], change, *interval, str(record["strength"]))
        methods.setdefault(record["method"], []).append(point)
    if not methods:
        raise ValueError("there are no points")
    return methods


def change_at(points: Sequence[Point], cost: float) -> float | None:
    """Change of behaviour at a given cost: the best that is had for at most that much.

    Between two strengths the line between them counts; a method whose every strength costs more is
    read off the line from the base. A gain of ability is no cost.

    Returns:
        None where the method never comes near that cost: its strongest setting costs less and more
        strength might have bought more, so that its best change would be no fair figure.
    """
    if max(point.cost for point in points) < cost:
        return None
    return change_within([(point.cost, point.change) for point in points], cost)


def change_within(points: Iterable[tuple[float, float]], cost: float) -> float:
    """The most change that (cost, change) points bring for at most `cost`, from the base at the
    origin, lines between them included. A gain of ability is no cost.
    """
    line = [(0.0, 0.0), *sorted((max(spent, 0.0), change) for spent, change in points)]
    reached = [change for spent, change in line if spent <= cost]
    for (before, low), (after, high) in pairwise(line):
        if before < cost < after:
            reached.append(low + (cost - before) / (after - before) * (high - low))
    return max(reached)


def tradeoff_table(methods: Mapping[str, Sequence[Point]], costs: Sequence[float]) -> str:
    """Change of every method at each cost, as a markdown table; `-`: not reached."""
    rows = []
    for name, points in methods.items():
        found = [change_at(points, cost) for cost in costs]
        cells = ["-" if change is None else f"{change:+.3f}" for change in found]
        rows.append([name, str(len(points)), *cells])
    return markdown(["method", "strengths", *(f"change at a loss of {c:g}" for c in costs)], rows)


def tradeoff_figure(
    methods: Mapping[str, Sequence[Point]],
    path: Path,
    *,
    cost: str = "loss of ability (nats per token on unrelated text)",
    change: str = "change of behaviour",
) -> None:
    """One line a method from the base at the origin, with intervals and the strengths beside."""
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
