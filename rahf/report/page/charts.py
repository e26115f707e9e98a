"""Numbers -> the geometry of charts, which a template draws as SVG without a colour of its own."""

from collections.abc import Mapping, Sequence
from math import floor, isfinite, log10
from typing import NamedTuple

from rahf.report.page.blocks import Chart, Forest, Line, Tick

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 36
MOST = 400
"""Points of a curve that are drawn; of more, every n-th."""

Point = tuple[float, float]
Interval = tuple[float, float, float, float]
"""x, y, and both ends of the interval of y."""


def ticks(low: float, high: float, count: int = 4, *, whole: bool = False) -> list[float]:
    """Return round numbers from low to high; `whole`: integers only."""
    span = high - low or abs(high) or 1.0
    raw = span / count
    base = 10 ** floor(log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw * 0.999)
    step = max(1, round(step)) if whole else step
    first = floor(low / step)
    found = [(first + place) * step for place in range(count * 3)]
    return [value for value in found if low - 1e-9 * span <= value <= high + 1e-9 * span]


def shown(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def curves(
    title: str,
    label: str,
    axes: tuple[str, str],
    given: Mapping[str, Sequence[Point | Interval]],
    *,
    joined: bool = True,
    from_zero: bool = False,
) -> Chart | None:
    """Return a chart of named curves; None where there is no finite point."""
    known = {
        name: _thinned([p for p in points if all(map(isfinite, p))])
        for name, points in given.items()
    }
    known = {name: points for name, points in known.items() if points}
    if not known:
        return None
    frame = _frame(known, from_zero=from_zero)
    lines = [
        Line(
            name,
            [(frame.x(point[0]), frame.y(point[1])) for point in points],
            [(frame.x(p[0]), frame.y(p[2]), frame.y(p[3])) for p in points if len(p) == 4],
        )
        for name, points in known.items()
    ]
    low, high = frame.ys
    zero = frame.y(0.0) if low < 0 < high else None
    x_ticks = [Tick(frame.x(x), shown(x)) for x in ticks(*frame.xs, whole=frame.whole)]
    y_ticks = [Tick(frame.y(y), shown(y)) for y in ticks(low, high)]
    return Chart(title, label, *axes, lines, x_ticks, y_ticks, zero, joined)


class _Frame(NamedTuple):
    """The ranges of both axes, and where their values are drawn."""

    xs: tuple[float, float]
    ys: tuple[float, float]
    whole: bool  # whether every x is an integer

    def x(self, value: float) -> float:
        share = (value - self.xs[0]) / (self.xs[1] - self.xs[0])
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

    def y(self, value: float) -> float:
        share = (value - self.ys[0]) / (self.ys[1] - self.ys[0])
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)


def _frame(known: Mapping[str, Sequence[tuple[float, ...]]], *, from_zero: bool) -> _Frame:
    flat = [point for points in known.values() for point in points]
    xs = [point[0] for point in flat]
    ys = [y for point in flat for y in point[1:]] + ([0.0] if from_zero else [])
    return _Frame(_range(xs, 0.02), _range(ys, 0.05), all(x == int(x) for x in xs))


def _thinned(points: Sequence[tuple[float, ...]]) -> Sequence[tuple[float, ...]]:
    step = -(-len(points) // MOST) if points else 1
    return points[::step]


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    space = (high - low) * margin or abs(high) * 0.1 or 1.0
    return low - space, high + space


FOREST = 3.0
"""Sizes at the ends of the axis of the audit; larger ones are drawn at its end."""


def forest(
    estimate: tuple[float, float, float],
    spread: float,
    band: tuple[float, float] | None,
    dots: Sequence[float],
    *,
    moved: bool,
) -> Forest | None:
    """Return an effect in units of the trait's spread, on an axis that is narrower further out."""
    if not spread or not all(map(isfinite, (*estimate, *(band or ()), *dots))):
        return None

    def place(value: float) -> float:
        size = value / spread
        bounded = min(abs(size), FOREST) / FOREST
        return round((bounded**0.5) * (1 if size >= 0 else -1), 3)

    mean, low, high = estimate
    shaded = (place(band[0]), place(band[1])) if band else None
    return Forest(place(low), place(mean), place(high), shaded, [*map(place, dots)], moved)
