"""Sections of what was measured or forecast beside a training: judges, pairs, tasks, data, sweeps.

Every row has its 95 % interval, or says that there is none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rahf.report.judgements import INTERVAL, MEASURES, PLACES
from rahf.report.page.blocks import Cell, Section, Table
from rahf.report.page.closing import closing
from rahf.report.page.figures import (
    NOTHING,
    cut,
    interval,
    left_out,
    plain,
    q_text,
    share,
    signed,
    with_interval,
)
from rahf.report.page.reading import Part, number

POINTS_SHOWN = 60
TASK_FIGURES_SHOWN = 80


def _section(
    name: str, title: str, lead: str, parts: Sequence[Part], tables: Callable[[Part], list[Any]]
) -> Section | None:
    """Return a section of a few tables a result, each result with its command."""
    blocks = [block for part in parts for block in (*tables(part), *closing(part))]
    return Section(name, title, lead, blocks) if blocks else None


def judged_section(parts: Sequence[Part]) -> Section | None:
    """Return a judge's scores, marks or decisions on files of responses."""
    lead = "Scores or decisions of a judge on files of responses; intervals are over the responses."
    return _section("judged", "Responses judged", lead, parts, _judged)


def _judged(part: Part) -> list[Any]:
    figures, title = part.figures, f"{part.path.name}, judge {part.figures['judge']}"
    if "aspects" in figures:
        rows = [
            [name, with_interval(marks), plain(marks["missing"], 6)]
            for name, marks in figures["aspects"].items()
        ]
        return [Table(title, ["aspect", "mark, 1 to 5 [95 %]", "not read"], rows)]
    if "prompts" in figures:
        return [_wins(title, figures)]
    counts = [plain(figures[key], 6) for key in ("responses", "missing")]
    row = [part.path.stem, with_interval(figures.get("score")), *counts]
    return [Table(title, ["figures", "score [95 %]", "responses", "not read"], [row])]


def _wins(title: str, figures: Mapping[str, Any]) -> Table:
    """Return a comparison of two files, seen from the first."""
    rows = [
        [name, with_interval(figures.get(key), share)]
        for key, name in (
            ("win_rate", "win rate, ties count half"),
            ("win_rate_at_equal_length", "win rate at equal length, fitted"),
            ("longer_wins", "the longer response wins"),
        )
    ]
    counts = [plain(figures[key], 6) for key in ("wins", "ties", "losses", "missing")]
    rows.append(["wins, ties, losses, not read", ", ".join(counts)])
    if "orders_agree" in figures:
        rows += [[name, _with_ends(figures, key, share)] for key, name in PLACES.items()]
    title = f"{cut(figures['first'], 80)} against {cut(figures['second'], 80)}: {title}"
    note = f"{plain(figures['prompts'], 6)} prompts, seen from the first file."
    return Table(title, ["figure", "value [95 %]"], rows, note)


def _with_ends(figures: Mapping[str, Any], key: str, form: Callable[[Any], str]) -> str:
    """Return a figure with the interval that is beside it under a key of its own."""
    low, high = figures.get(key + INTERVAL) or (None, None)
    return NOTHING if figures[key] is None else f"{form(figures[key])} {interval(low, high, form)}"


def preferences_section(parts: Sequence[Part]) -> Section | None:
    """Return whether chosen responses are likelier than rejected ones, by each measure."""
    lead = "Held-out or other pairs; intervals are over the pairs."
    return _section("preferences", "Preferences", lead, parts, _preferences)


def _preferences(part: Part) -> list[Any]:
    figures = part.figures
    rows = [
        [title, with_interval(each["accuracy"], share), with_interval(each["margin"], signed)]
        for name, title in MEASURES.items()
        if (each := figures.get(name))
    ]
    rows.append(["the longer one is chosen", with_interval(figures["longer_is_chosen"], share)])
    rows[-1].append(NOTHING)
    header = ["measure", "accuracy [95 %]", "margin, nats [95 %]"]
    return [Table(str(part.path), header, rows, f"{plain(figures['pairs'], 6)} pairs.")]


def tasks_section(parts: Sequence[Part]) -> Section | None:
    """Return the figures of tasks of the evaluation harness."""
    lead = (
        "Tasks of lm-evaluation-harness, by its own names. Intervals are over the questions; a "
        "figure that is no mean over questions has none."
    )
    return _section("tasks", "Tasks", lead, parts, _tasks)


def _tasks(part: Part) -> list[Any]:
    rows = [row for task, found in part.figures["tasks"].items() for row in _of_task(task, found)]
    shown = rows[:TASK_FIGURES_SHOWN]
    note = left_out(len(rows), len(shown), part.path, "figures")
    model = cut(part.figures.get("model") or part.path, 200)
    return [Table(model, ["task", "figure", "value [95 %]"], shown, note)]


def _of_task(task: str, found: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, value in found.items():
        if name.endswith(INTERVAL):
            continue
        ends = found.get(name + INTERVAL) or (None, None)
        shown = "not finite" if value is None else f"{plain(value)} {interval(*ends)}"
        yield [task, name, shown]


def screen_section(parts: Sequence[Part]) -> Section | None:
    """Return which way each direction is forecast to move by a training on a data set."""
    lead = (
        "What a training on the data is forecast to move, before it runs: the effect in units of "
        "each direction, beside random directions and shuffled sides. It tells which way, not how "
        "far."
    )
    return _section("forecast", "Forecast of the data", lead, parts, _screened)


SIGNS = {"will rise": "open", "will fall": "open"}


def _screened(part: Part) -> list[Any]:
    figures = part.figures
    rows = [
        [
            name,
            Cell(each["verdict"], SIGNS.get(each["verdict"], "still")),
            with_interval(each, signed),
            interval(*each["random"], signed),
            interval(*each["shuffled"], signed),
            q_text(number(each["q"])),
        ]
        for name, each in figures["directions"].items()
    ]
    header = ["trait", "forecast", "effect [95 %]", "random directions", "shuffled sides", "q"]
    note = (
        f"{plain(figures['rows'], 6)} rows, {plain(figures['prompts'], 6)} prompts. Difference in "
        f"characters: {with_interval(figures['characters'], signed)}."
    )
    return [Table(cut(figures.get("data") or part.path.parent, 200), header, rows, note)]


def sweep_section(parts: Sequence[Part]) -> Section | None:
    """Return the figures of each point of a grid."""
    lead = (
        "A training a point of the grid. Each figure is one run's mean, without an interval: the "
        "folder of a point has its own page by rahf report."
    )
    return _section("sweep", "Sweep", lead, parts, _sweep)


def _sweep(part: Part) -> list[Any]:
    points = part.figures["points"]
    names = list(dict.fromkeys(name for point in points for name in point["results"]))
    rows = [
        [
            ", ".join(f"{key} {value}" for key, value in point["point"].items()),
            *(plain(point["results"].get(name)) for name in names),
        ]
        for point in points[:POINTS_SHOWN]
    ]
    header = ["point", *(f"{name} (one run)" for name in names)]
    note = left_out(len(points), len(rows), part.path, "points")
    return [Table(str(part.path.parent), header, rows, note)] if rows else []
