"""Explanations and their scores as tables, and as cells beside other numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from rahf.report.judgements import number
from rahf.report.tables import markdown

SHOWN = 20
"""Units of a table."""

TITLES = {"feature": "feature {}", "vector": "direction, layer {}", "random": "random {}"}


def explained_text(explanation: str | None, scores: Mapping[str, Any] | None) -> str:
    """Return an explanation with its scores for a cell, or that there is none."""
    if explanation is None:
        return "unexplained"
    named = [f"{name} {_mean(each)}" for name, each in (scores or {}).items() if each]
    return f"{explanation} ({', '.join(named)})" if named else f"{explanation} (not scored)"


def _mean(figures: Mapping[str, Any]) -> str:
    found = figures.get("auc") or figures.get("variance")
    return "-" if found is None else "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**found)


def explanation_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the title and the cells of a column of explanations; nothing where rows have none."""
    if not any("explanation" in row for row in rows):
        return [], [[] for _ in rows]
    cells = [[explained_text(row["explanation"], row["scores"])] for row in rows]
    return ["explanation"], cells


def layers_explained(layers: Sequence[int], known: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the explanation of the direction of each layer."""
    rows = [
        [str(layer), explained_text(line.get("explanation"), line.get("scores"))]
        for layer, line in ((layer, known.get(layer, {})) for layer in layers)
    ]
    return markdown(["layer", "explanation"], rows)


def explained_table(lines: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> str:
    """Return the first explanations, and how many units have one."""
    rows = [
        [
            _name(line),
            f"{line['rate']:.2%}",
            explained_text(line["explanation"], line.get("scores")),
        ]
        for line in lines
        if line["kind"] != "random"
    ]
    counts = ", ".join(
        f"{part['explained']} of {part['units']} {kind}s" for kind, part in figures.items()
    )
    table = markdown(["unit", "active", "explanation"], rows[:SHOWN])
    return f"{table}\n\nexplained: {counts.replace('randoms', 'random directions')}"


def _name(line: Mapping[str, Any]) -> str:
    return TITLES[line["kind"]].format(line["number"])


def scores_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Return means over units, with both nulls and what failed."""
    rows = [
        [
            name,
            "AUC" if part["measure"] == "auc" else "variance explained",
            *(_estimate(part[group]) for group in ("explained", "shuffled", "random")),
            f"{part['explained']['units']} ({part['explained']['unscored']} not scored)",
            f"{part['explained']['failed']} of {part['explained']['asked']}",
        ]
        for name, part in summary.items()
    ]
    header = ["scorer", "measure", "explanations", "shuffled", "random directions", "units"]
    return markdown([*header, "failed answers"], rows)


def _estimate(part: Mapping[str, Any]) -> str:
    return "-" if part["mean"] is None else number(part["mean"], ".3f")


def cost_text(cost: Mapping[str, Any], units: int, what: str) -> str:
    """Return what was, or will be, asked, and the cost of 1,000 units."""
    scale = 1000 / max(1, units)
    named = [
        f"{round(scale * cost[key]):,} {name}"
        for key, name in (
            ("questions", "questions"),
            ("read", "tokens read"),
            ("written", "tokens written"),
        )
    ]
    price = [f"price {scale * cost['price']:.2f}"] if "price" in cost else []
    return f"{what}, per 1,000 units: {', '.join([*named, *price])}"


def predictions_table(figures: Mapping[str, Any]) -> str:
    """Return how well sentences predict where base and aligned model differ."""
    rows = [
        [
            str(row["feature"]),
            f"{row['effect']:+.3g}",
            row["explanation"],
            *(_mean(row[key]) for key in ("differs", "changes", "shuffled")),
            str(row["differs"]["failed"]),
        ]
        for row in figures["features"]
    ]
    together = figures["together"]
    both = [_mean(together[key]) for key in ("differs", "shuffled")]
    rows.append(["all", "", "the largest value over the features", both[0], "", both[1], ""])
    header = ["feature", "effect", "explanation", "models differ", "feature changes", "shuffled"]
    text = (
        f"AUC over {figures['prompts']} prompts. The models differ on the half with the larger KL; "
        "shuffled: another feature's explanation, scored on where the models differ."
    )
    return f"{markdown([*header, 'failed'], rows)}\n\n{text}"
