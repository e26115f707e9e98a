"""Sections of the training pairs: which ones caused it, whether retraining agrees, and cleaning."""

from collections.abc import Mapping, Sequence
from typing import Any

from rahf.report.page.blocks import Cell, Section, Table, Text
from rahf.report.page.closing import closing
from rahf.report.page.figures import NOTHING, cut, plain, share, signed, verdict, with_interval
from rahf.report.page.reading import Part

QUERIES_SHOWN = 8
PAIRS_SHOWN = 6


def influence_section(parts: Sequence[Part]) -> Section | None:
    """Return the pairs that caused it, for the first queries."""
    blocks: list[Any] = []
    for part in parts:
        figures, unit = part.figures, part.figures["unit"]
        blocks.append(Text(_trust(figures), "" if figures.get("validation") else "note"))
        shown = part.records[:QUERIES_SHOWN]
        for record in shown:
            ordered = sorted(record["pairs"], key=lambda pair: -abs(pair["change"]))[:PAIRS_SHOWN]
            rows = [_pair(pair) for pair in ordered]
            header = ["training pair", f"change without it, {unit} (estimate, no interval)"]
            header += ["on the query", "text of the pair"]
            blocks.append(Table(cut(record["query"], 200), header, rows))
        blocks += closing(part, len(shown), "queries.jsonl", "queries")
    lead = (
        "What a query would gain if the pair were left out of the training, to first order: one "
        "estimate of one training. A pair without which the query falls supports it."
    )
    return Section("influence", "Pairs that caused it", lead, blocks) if blocks else None


def _trust(figures: Mapping[str, Any]) -> str:
    validated = (figures.get("validation") or {}).get("datamodelling", {}).get("influence")
    if validated:
        text = f"Retraining agrees with a rank correlation of {with_interval(validated, signed)}."
    else:
        text = (
            "No retraining has checked these estimates; rahf influence validate measures how far "
            "they hold."
        )
    return " ".join([text, *(f"Note: {note}." for note in figures.get("notes", ()))])


def _pair(pair: Mapping[str, Any]) -> list[str | Cell]:
    supports = pair["change"] < 0
    sides = [
        f"{row['side']}: {''.join(map(str, row['pieces'])).strip()}"
        for detail in pair.get("details", ())
        for row in detail["rows"]
    ]
    role = Cell("supports", "good") if supports else Cell("opposes", "bad")
    text = cut(" · ".join(dict.fromkeys(sides)), 300) or NOTHING
    return [f"row {pair['row']}", signed(pair["change"]), role, text]


def validation_section(parts: Sequence[Part]) -> Section | None:
    """Return how far influence agrees with retraining, each ranking beside its rivals."""
    blocks: list[Any] = []
    for part in parts:
        figures, steps = part.figures, part.figures["steps"]
        blocks.append(Text(_steps(figures, steps)))
        ranked = {"Rank correlation with retraining on halves": figures.get("datamodelling")}
        ranked["AUC of finding flipped pairs"] = (figures.get("flips") or {}).get("auc")
        for title, found in ranked.items():
            if found:
                rows = [[name, with_interval(each, signed)] for name, each in found.items()]
                blocks.append(Table(title, ["ranking", "value [95 %]"], rows))
        rows = [
            [name, signed(each["predicted"]), with_interval(each["measured"], signed)]
            for name, each in (figures.get("leave_out") or {}).items()
        ]
        header = ["without", "predicted change (estimate, no interval)", "measured [95 %]"]
        blocks += [Table("Left out and trained again", header, rows, ONE_SEED)] if rows else []
        blocks += closing(part)
    lead = (
        "The adapter was trained again on other pairs. Intervals are over the queries, over the "
        "pairs (AUC), and over the seeds (left out)."
    )
    return Section("validation", "Whether retraining agrees", lead, blocks) if blocks else None


ONE_SEED = "A single retraining has no interval; repeat with --seeds for one."


def _steps(figures: Mapping[str, Any], steps: Mapping[str, Any]) -> str:
    return (
        f"Small steps of the weights against what is predicted, {plain(steps['pairs'], 6)} largest "
        f"pairs: correlation {signed(steps['correlation'])}, slope {signed(steps['slope'])} "
        f"(one adapter: no interval). Curvature: {figures['curvature']}."
    )


def cleaning_section(parts: Sequence[Part]) -> Section | None:
    """Return what retraining without the worst pairs gains, an arm a row."""
    blocks: list[Any] = []
    for part in parts:
        rows = [[name, *_arm(arm)] for name, arm in part.figures["arms"].items()]
        header = ["arm", "pairs changed", "held-out accuracy [95 %]", "gained, points of 100"]
        header += ["verdict", "margin, nats per token", "margin gained"]
        blocks += [Table(str(part.path.parent), header, rows), *closing(part)]
    lead = (
        "What retraining gains against all pairs: means over the seeds, 95 % intervals over the "
        "held-out pairs."
    )
    return Section("cleaning", "Without the worst pairs", lead, blocks) if blocks else None


def _arm(arm: Mapping[str, Any]) -> list[str | Cell]:
    changed, gained = len(arm["rows"]), arm["gained"]
    of_arm = [plain(changed, 6), with_interval(arm["accuracy"], share)]
    compared: list[str | Cell] = [NOTHING, NOTHING]
    if changed:
        compared = [with_interval(gained, points), verdict(gained["low"], gained["high"])]
    margin = with_interval(arm["margin_gained"], signed) if changed else NOTHING
    return [*of_arm, *compared, with_interval(arm["margin"], signed), margin]


def points(value: float) -> str:
    """Return a difference of shares in points of a hundred."""
    return signed(100 * value)
