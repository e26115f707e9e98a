"""What a comparison has come to: its tables, its chart and its files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rahf.artifacts import write_json, write_lines, write_text
from rahf.comparison.curves import Cost, Curves, curves_of, points, read_at, read_at_each
from rahf.evaluation.wins import place_figures
from rahf.recipe.comparison_options import kind_of_row
from rahf.report.comparison import comparison_table, place_line, readings_table, row_figures
from rahf.report.curves import tradeoff_figure

if TYPE_CHECKING:
    from rahf.comparison.run import Comparison


class Measured(NamedTuple):
    """One row as it stands in the table."""

    trial: int
    by_seed: list[list[dict[str, Any]]]  # measures at each strength
    costs: list[dict[str, float]]  # of the training, a seed


def tell(comparison: "Comparison", rows: dict[str, Measured]) -> None:
    """Write and print what the rows have come to."""
    options, folder = comparison.options, comparison.folder
    curves = {name: curves_of(row.by_seed) for name, row in rows.items()}
    base, wins = comparison.base, comparison.judge.responses == 2
    others = {name: row for name, row in curves.items() if name != base}
    readings, differences = read_at(
        others, curves[base], options.budget, options.cost, comparison.sign
    )
    lines = {
        name: points(row, curves[base], options.cost, comparison.sign)
        for name, row in others.items()
    }
    table = {
        name: row_figures(row.by_seed, row.costs, rows[base].by_seed[0])
        | ({"at_budget": readings[name]._asdict()} if name in readings else {})
        for name, row in rows.items()
    }
    text = comparison_table(table, options.cost, options.budget, wins=wins)
    several = readings_of(others, curves[base], comparison.sign)
    if several[0]["rows"]:
        text += f"\n\n{readings_table(several)}"
    place = _place(rows) if wins else None
    if place:
        text += f"\n\n{place_line(place)}"
    settings = {
        name: {**options.rows[name], **comparison.trials(name)[row.trial]}
        for name, row in rows.items()
    }
    write_json(
        folder / "comparison.json",
        {
            "judge": comparison.judge.id,
            "repetition_limit": options.repetition_limit,
            "score": "win over the base's answer" if wins else "the judge's own",
            "wanted_side": comparison.sign,
            **({"place": place} if place else {}),
            "cost": options.cost,
            "budget": options.budget,
            "settings": settings,
            "rows": table,
            "differences": [
                {"row": one, "against": other, **found._asdict()}
                for (one, other), found in differences.items()
            ],
            "readings": several,
        },
    )
    write_text(folder / "comparison.md", text + "\n")
    write_lines(
        folder / "points.jsonl",
        (
            {"method": name, "strength": point.label, "cost": point.cost, "change": point.change}
            | {"low": point.low, "high": point.high}
            for name, found in lines.items()
            for point in found
        ),
    )
    tradeoff_figure(
        lines,
        folder / "tradeoff.png",
        cost=COST_LABELS[options.cost],
        change=CHANGE_LABELS[wins],
    )
    _write_answers(comparison, rows, folder / "answers.jsonl")
    print(f"\n{text}\n\nresults: {folder}")


READ_AT: dict[Cost, tuple[float, ...]] = {
    "loss": (0.01, 0.02, 0.05, 0.1),
    "kl": (0.02, 0.05, 0.1, 0.2),
}
"""Costs, in nats per token, at which every comparison is read, whichever of them decides."""

BASELINES = ("sft", "dpo")


def readings_of(others: dict[str, Curves], base: Curves, sign: int) -> list[dict[str, Any]]:
    """Every row at each cost of READ_AT, and what the others have over SFT and DPO."""
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


def _place(rows: dict[str, Measured]) -> dict[str, float] | None:
    """How much of what the judge said of all rows is the place; None: it was asked nothing."""
    orders = [
        verdicts
        for row in rows.values()
        for measures in row.by_seed
        for point in measures
        for verdicts, score in zip(point["verdicts"], point["scores"], strict=True)
        if verdicts and score is not None
    ]
    return place_figures(orders) if orders else None


COST_LABELS = {
    "loss": "loss of ability (nats per token on unrelated text)",
    "kl": "KL from the base on unrelated text (nats per token)",
}


CHANGE_LABELS = {
    False: "change of behaviour (the judge's mean)",
    True: "wins over the base's answers, above one half",
}


def _write_answers(comparison: "Comparison", rows: dict[str, Measured], path: Path) -> None:
    """The first seed's answers and scores at strength 1, or at the strength nearest to it."""
    chats = comparison.asked("test").chats
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
