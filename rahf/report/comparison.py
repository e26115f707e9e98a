"""The table of a comparison: quality beside cost, one row per method. Reads figures, no model."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rahf.report.tables import agreement_table, markdown

GIB = 2**30

Points = Sequence[Mapping[str, Any]]
"""The measures of one seed, a strength each (`rahf.evaluation.measures.Measures`)."""


def row_figures(
    by_seed: Sequence[Points],
    costs: Sequence[Mapping[str, float]],
    base: Points,
) -> dict[str, Any]:
    """Return the figures of a row: means over seeds at strength 1, with the spread of the seeds.

    Args:
        costs: of each seed `training_seconds`, and `peak_memory` where it is known; empty for a row
            that is not trained.
    """
    shown = [min(points, key=lambda point: abs(point["strength"] - 1)) for points in by_seed]
    before = _per_token(base[0], "text_loss")
    figures: dict[str, Any] = {"seeds": len(shown), "strength": shown[0]["strength"]}
    judged = [fmean(scores) for point in shown if (scores := _readable(point["scores"]))]
    if judged:
        figures["judged_mean"] = _over_seeds(judged)
    missing = [
        fmean(score is None for point in points for score in point["scores"]) for points in by_seed
    ]
    if any(missing):
        figures["verdicts_missing"] = _over_seeds(missing)
    for name, of in (
        ("characters", lambda point: fmean(map(len, point["answers"]))),
        ("repetition", lambda point: fmean(map(repeated_share, point["answers"]))),
        ("unrelated_loss", lambda point: _per_token(point, "text_loss")),
        ("ability_loss", lambda point: _per_token(point, "text_loss") - before),
        ("kl", lambda point: _per_token(point, "text_kl")),
    ):
        figures[name] = _over_seeds([of(point) for point in shown])
    margins = [point["preference_margins"] for point in shown if point["preference_margins"]]
    if margins:
        accuracies = [_accuracy(given) for given in margins]
        figures["preference_accuracy"] = _over_seeds(accuracies)
        figures["preference_margin"] = _over_seeds([fmean(given) for given in margins])
    if costs:
        figures["training_seconds"] = _over_seeds([cost["training_seconds"] for cost in costs])
    if costs and all("peak_memory" in cost for cost in costs):
        figures["peak_memory"] = max(cost["peak_memory"] for cost in costs)
    return figures


def _accuracy(margins: Sequence[float]) -> float:
    """Return the share of positive margins; one of zero counts half."""
    return fmean((margin > 0) + (margin == 0) / 2 for margin in margins)


def repeated_share(text: str) -> float:
    """Return the share of runs of three words that occurred in the text before.

    Neither a judge of single words nor unrelated text measures repetition.
    """
    given = text.lower().split()
    runs = [tuple(given[at : at + 3]) for at in range(len(given) - 2)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def comparison_table(
    rows: Mapping[str, Mapping[str, Any]], cost: str, budget: float, *, wins: bool = False
) -> str:
    """Return one line a row; `±` is the standard deviation over seeds, brackets are 95 % intervals.

    Args:
        wins: whether a score is a win against the base.
    """
    forms = {
        "preference_accuracy": ("preference accuracy", "{:.0%}"),
        "preference_margin": ("margin (nats/token)", "{:+.3f}"),
        "judged_mean": ("wins over base", "{:.0%}") if wins else ("judged mean", "{:+.2f}"),
        "verdicts_missing": ("verdicts missing", "{:.0%}"),
        "characters": ("characters", "{:.0f}"),
        "repetition": ("repetition", "{:.0%}"),
        "ability_loss": ("ability loss", "{:+.3f}"),
        "kl": ("KL to base", "{:.3f}"),
        "training_seconds": ("training, s", "{:.0f}"),
    }
    if not any("verdicts_missing" in row for row in rows.values()):
        del forms["verdicts_missing"]
    titles = [title for title, _ in forms.values()]
    header = ["row", *titles, "peak memory, GiB", f"change at a {cost} of {budget:g}"]
    lines = []
    for name, row in rows.items():
        cells = [_cell(row.get(key), form) for key, (_, form) in forms.items()]
        memory = f"{row['peak_memory'] / GIB:.2f}" if "peak_memory" in row else "-"
        lines.append([name, *cells, memory, _at_budget(row.get("at_budget"))])
    return markdown(header, lines)


def readings_table(readings: Sequence[Mapping[str, Any]]) -> str:
    """Return the change at several costs, a line for each row and each difference of two.

    Brackets are 95 % intervals. `≥`: no strength of the row cost so much.

    Args:
        readings: each with `cost`, `at`, `rows` (by name) and `differences` (by "one - other").
    """
    header = ["change at", *(f"{found['cost']} {found['at']:g}" for found in readings)]
    lines = {}
    for found in readings:
        for name, reading in found["rows"].items():
            least = "" if reading["reached"] else "≥ "
            lines.setdefault(name, [name]).append(least + _with_interval(reading))
    for found in readings:
        for name, reading in found["differences"].items():
            lines.setdefault(name, [name]).append(_with_interval(reading))
    return markdown(header, list(lines.values()))


def judges_table(found: Mapping[str, Any], cost: str, budget: float) -> str:
    """Return two tables: each row read by each judge and by length, and how often any two judges
    agree on which answers changed to the wanted side.

    Args:
        found: `judges` (readings by judge and row) and `agreement`.
    """
    judges, names = found["judges"], []
    for readings in judges.values():
        names += [name for name in readings if name not in names]
    lines = [
        [name, *(_at_budget(readings.get(name)) for readings in judges.values())] for name in names
    ]
    header = [f"change at a {cost} of {budget:g}, by judge", *judges]
    return f"{markdown(header, lines)}\n\n{agreement_table(found['agreement'])}"


def _with_interval(reading: Mapping[str, Any]) -> str:
    return f"{reading['change']:.2f} [{reading['low']:.2f}, {reading['high']:.2f}]"


def place_line(figures: Mapping[str, Any]) -> str:
    """Return a line on how much a judge's choice depends on the order of the answers."""
    low, high = figures["orders_agree_interval"]
    return (
        f"The judge: both orders agree in {figures['orders_agree']:.0%} [{low:.0%}, {high:.0%}] of "
        f"{figures['contests']}, the first place preferred "
        f"with {figures['first_place_preferred']:.0%}."
    )


def _cell(value: Mapping[str, float] | None, form: str) -> str:
    if value is None:
        return "-"
    spread = f" ± {form.format(value['sd']).lstrip('+')}" if "sd" in value else ""
    return form.format(value["mean"]) + spread


def _at_budget(reading: Mapping[str, Any] | None) -> str:
    if reading is None:
        return "-"
    least = "" if reading["reached"] else "at least "
    return f"{least}{reading['change']:+.3f} [{reading['low']:+.3f}, {reading['high']:+.3f}]"


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
    spread = {"sd": stdev(values)} if len(values) > 1 else {}
    return {"mean": fmean(values), **spread}


def _per_token(point: Mapping[str, Any], key: str) -> float:
    return sum(point[key]) / sum(point["text_tokens"])


def _readable(scores: Sequence[float | None]) -> list[float]:
    return [score for score in scores if score is not None]
