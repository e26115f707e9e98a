"""The results of a sweep: a table, and a heat map over its first two axes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rahf.report.tables import markdown


def sweep_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return one row a point, in the order of the grid."""
    axes, columns = list(results[0]["point"]), list(results[0]["results"])
    rows = [
        [*each["point"].values(), *(f"{each['results'][name]:.3f}" for name in columns)]
        for each in results
    ]
    return markdown([*axes, *columns], rows)


def heat_map(
    results: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[str]], path: Path
) -> None:
    """Draw a panel a figure: first axis downwards, second to the right, other axes averaged."""
    from matplotlib.figure import Figure

    names = list(axes)
    down, right = names[0], names[1] if len(names) > 1 else None
    columns = list(results[0]["results"])
    if not columns:  # nothing was measured
        return
    figure = Figure(figsize=(3.4 * len(columns), 3.2), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for panel, name in zip(panels, columns, strict=True):
        cells = [
            [
                _mean(results, name, {down: y} | ({right: x} if right else {}))
                for x in _of(axes, right)
            ]
            for y in axes[down]
        ]
        panel.imshow(cells, aspect="auto")
        for y, row in enumerate(cells):
            for x, value in enumerate(row):
                panel.text(x, y, f"{value:.2f}", ha="center", va="center", color="white")
        panel.set_yticks(range(len(axes[down])), axes[down])
        panel.set_xticks(range(len(_of(axes, right))), _of(axes, right))
        panel.set(title=name, ylabel=down, xlabel=right or "")
    figure.savefig(path, dpi=120)


def _of(axes: Mapping[str, Sequence[str]], name: str | None) -> Sequence[str]:
    return axes[name] if name else [""]


def _mean(results: Sequence[Mapping[str, Any]], name: str, at: Mapping[str, str]) -> float:
    """Return the mean over the points there; NaN where no point is done yet."""
    found = [each["results"][name] for each in results if at.items() <= each["point"].items()]
    return sum(found) / len(found) if found else float("nan")
