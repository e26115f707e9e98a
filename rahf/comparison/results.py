"""Results of a comparison as tables and files. Knows measures and scores; knows no model."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rahf.artifacts import write_lines, write_text
from rahf.comparison.curves import Cost, Curves, curves_of, points, read_at, read_at_each
from rahf.comparison.judging import without_loops
from rahf.evaluation.agreement import LENGTH, agreements, changes
from rahf.evaluation.scores import Judging
from rahf.evaluation.wins import place_figures
from rahf.recipe.comparison_options import CompareOptions, kind_of_row
from rahf.records.command_line import write_result
from rahf.report.comparison import (
    comparison_table,
    judges_table,
    place_line,
    readings_table,
    row_figures,
)
from rahf.report.tradeoff_chart import Point, tradeoff_chart


class RowResult(NamedTuple):
    """One row of the table."""

    settings: dict[str, Any]  # its own keys, and those of its trial
    by_seed: list[list[dict[str, Any]]]  # measures at each strength
    costs: list[dict[str, float]]  # of the training, a seed


class Results(NamedTuple):
    """Results of all rows."""

    rows: dict[str, dict[str, Any]]  # figures of the table
    differences: list[dict[str, Any]]  # of any two rows, at the budget
    readings: list[dict[str, Any]]  # see `readings_of`
    place: dict[str, float] | None  # effect of the order of the answers on a judge that compares
    lines: dict[str, list[Point]]  # the curves


def write_results(
    folder: Path,
    options: CompareOptions,
    judgings: Sequence[Judging],
    chats: Sequence[Any],
    rows: Mapping[str, RowResult],
) -> None:
    """Write the results of the rows into `folder`, and print the tables.

    Args:
        judgings: the first decides; others are read beside it.
    """
    judging = judgings[0]
    found, wins = results_of(options, judging, rows), judging.compares
    text, beside = tables_of(found, options, wins=wins), {}
    if len(judgings) > 1:
        beside = judges_of(options, judgings, rows)
        text += f"\n\n{judges_table(beside, options.cost, options.budget)}"
    record = {
        "judge": judging.judge.id,
        "repetition_limit": options.repetition_limit,
        "score": "win over the base's answer" if wins else "the judge's own",
        "wanted_side": judging.sign,
        **({"place": found.place} if found.place else {}),
        "cost": options.cost,
        "budget": options.budget,
        "settings": {name: row.settings for name, row in rows.items()},
        "rows": found.rows,
        "differences": found.differences,
        "readings": found.readings,
        **beside,
    }
    write_result(folder / "comparison.json", "rahf compare", record)
    write_text(folder / "comparison.md", text + "\n")
    _write_points(found.lines, folder / "points.jsonl")
    tradeoff_chart(found.lines, folder / "tradeoff.png", options.cost, wins=wins)
    _write_answers(chats, rows, folder / "answers.jsonl")
    print(f"\n{text}\n\nresults: {folder}")


def results_of(options: CompareOptions, judging: Judging, rows: Mapping[str, RowResult]) -> Results:
    """Return the figures of every row, the base included."""
    curves = {name: curves_of(row.by_seed) for name, row in rows.items()}
    base = next(name for name in rows if kind_of_row(name) == "base")
    others = {name: row for name, row in curves.items() if name != base}
    given = (curves[base], options.budget, options.cost, judging.sign)
    readings, differences = read_at(others, *given)
    figures = {
        name: row_figures(row.by_seed, row.costs, rows[base].by_seed[0])
        | ({"at_budget": readings[name]._asdict()} if name in readings else {})
        for name, row in rows.items()
    }
    return Results(
        figures,
        [
            {"row": one, "against": other, **found._asdict()}
            for (one, other), found in differences.items()
        ],
        readings_of(others, curves[base], judging.sign),
        _place(rows) if judging.compares else None,
        {
            name: points(row, curves[base], options.cost, judging.sign)
            for name, row in others.items()
        },
    )


def judges_of(
    options: CompareOptions, judgings: Sequence[Judging], rows: Mapping[str, RowResult]
) -> dict[str, Any]:
    """Return every judge's reading of every row at the budget, and how far the judges agree.

    Length is read beside them: the change in characters of an answer, which is none where an
    answer counts as the base's.
    """
    signs = {judging.name: judging.sign for judging in judgings}
    signs.setdefault(LENGTH, 1)
    base = next(name for name in rows if kind_of_row(name) == "base")
    beside = rows[base].by_seed[0][0]["answers"]
    lengths = partial(_lengths, base=beside, limit=options.repetition_limit)
    readings, by_judge = {}, {}
    for judge, sign in signs.items():
        read = {
            name: curves_of(_read_by(judge, row.by_seed, lengths)) for name, row in rows.items()
        }
        untouched = read.pop(base)
        at_budget, _ = read_at(read, untouched, options.budget, options.cost, sign)
        readings[judge] = {name: reading._asdict() for name, reading in at_budget.items()}
        answers = [scores for row in read.values() for seed in row.scores for scores in seed]
        by_judge[judge] = changes(answers, untouched.scores[0, 0], sign)
    return {"judges": readings, "agreement": agreements(by_judge)}


def _read_by(
    judge: str,
    by_seed: Sequence[Sequence[Any]],
    lengths: Callable[[Sequence[str]], list[int]],
) -> list[list[dict[str, Any]]]:
    """Return the measures with the scores of another judge."""
    return [
        [
            {**point, "scores": point["by_judge"].get(judge) or lengths(point["answers"])}
            for point in points
        ]
        for points in by_seed
    ]


def _lengths(answers: Sequence[str], base: Sequence[str], limit: float) -> list[int]:
    """Return the characters of the answers, as judges read them."""
    return list(map(len, without_loops(answers, base, limit)))


def tables_of(found: Results, options: CompareOptions, *, wins: bool) -> str:
    """Return the tables, with a line on the effect of the order where the judge compares."""
    parts = [comparison_table(found.rows, options.cost, options.budget, wins=wins)]
    if found.readings[0]["rows"]:
        parts.append(readings_table(found.readings))
    if found.place:
        parts.append(place_line(found.place))
    return "\n\n".join(parts)


READ_AT: dict[Cost, tuple[float, ...]] = {
    "loss": (0.01, 0.02, 0.05, 0.1),
    "kl": (0.02, 0.05, 0.1, 0.2),
}
"""Costs, in nats per token, at which every comparison is read, whatever the budget."""

BASELINES = ("sft", "dpo")


def readings_of(others: dict[str, Curves], base: Curves, sign: int) -> list[dict[str, Any]]:
    """Return every row at each cost of READ_AT, and its difference from SFT and DPO."""
    found = []
    for cost, costs in READ_AT.items():
        for at, (alone, differences) in zip(
            costs, read_at_each(others, base, costs, cost, sign), strict=True
        ):
            over = {
                f"{one} - {other}": reading._asdict()
                for (one, other), reading in differences.items()
                if kind_of_row(one) not in BASELINES and kind_of_row(other) in BASELINES
            }
            rows = {name: reading._asdict() for name, reading in alone.items()}
            found.append({"cost": cost, "at": at, "rows": rows, "differences": over})
    return found


def _place(rows: Mapping[str, RowResult]) -> dict[str, float] | None:
    """Return the effect of the order on all verdicts; None: no request was made."""
    orders = [
        verdicts
        for row in rows.values()
        for measures in row.by_seed
        for point in measures
        for verdicts, score in zip(point["verdicts"], point["scores"], strict=True)
        if verdicts and score is not None
    ]
    return place_figures(orders) if orders else None


def _write_points(lines: Mapping[str, Sequence[Point]], path: Path) -> None:
    write_lines(
        path,
        (
            {"method": name, "strength": point.label, "cost": point.cost, "change": point.change}
            | {"low": point.low, "high": point.high}
            for name, found in lines.items()
            for point in found
        ),
    )


def _write_answers(chats: Sequence[Any], rows: Mapping[str, RowResult], path: Path) -> None:
    """Write the first seed's answers and scores at strength 1, or at the nearest to it."""
    shown = {
        name: min(row.by_seed[0], key=lambda point: abs(point["strength"] - 1))
        for name, row in rows.items()
    }
    write_lines(
        path,
        (
            {"prompt": chat}
            | {
                key: {name: point[key][index] for name, point in shown.items()}
                for key in ("answers", "scores")
            }
            for index, chat in enumerate(chats)
        ),
    )
