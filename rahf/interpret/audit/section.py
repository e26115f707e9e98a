"""The audit as the page shows it: a verdict to be read in ten seconds, then a line a trait."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

from rahf.interpret.audit.changes import Line
from rahf.interpret.audit.verdict import Audit, Features
from rahf.report.page.blocks import Cell, Table, Text
from rahf.report.page.charts import forest
from rahf.report.page.figures import NOTHING, interval, left_out, plain, q_text, signed
from rahf.report.page.looking_sections import feature_text

FEATURES_SHOWN = 8
LINES_SHOWN = 60

FEW_PLACEBOS = 3
"""Placebos below which the spread from run to run is hardly known."""


class AuditView(NamedTuple):
    """The audit of one training."""

    title: str
    level: str  # moved, still, open
    verdict: str
    notes: list[str]
    blocks: list[Any]


def audit_views(audits: Sequence[Audit]) -> list[AuditView]:
    return [_view(audit) for audit in audits]


def _view(audit: Audit) -> AuditView:
    level, verdict = _verdict(audit)
    blocks: list[Any] = []
    if audit.lines:
        shown = audit.lines[:LINES_SHOWN]
        header = ["trait", "before", "change [95 %]", "placebos", "q", "in units of its spread"]
        note = left_out(len(audit.lines), len(shown), audit.run.folder, "traits")
        rows = [_row(line) for line in shown]
        blocks.append(Table("Traits", [*header, "verdict"], rows, f"{LEGEND} {note}".strip()))
    blocks += [block for each in audit.features for block in _features(each)]
    blocks += [
        Text(f"Not looked at: {each.name} ({each.reason}).", "note") for each in audit.skipped
    ]
    title = str(audit.run.folder) if audit.run else "No training among the folders"
    return AuditView(title, level, verdict, _notes(audit), blocks)


LEGEND = (
    "The dot is the change with its 95 % interval, rings are the placebos, the band holds 95 % of "
    "what another placebo would do; the line in the middle is no change. A trait moved where q, "
    "corrected for all unasked traits, is below 0.05 for two tests at once: of no change over "
    "prompts, and of being another placebo over runs."
)


def _verdict(audit: Audit) -> tuple[str, str]:
    looked = len(audit.unasked)
    if not audit.lines:
        return "open", "No trait was looked at: nothing was measured after the training."
    if not looked:
        return "open", "No trait besides the asked one was measured."
    if audit.moved:
        return (
            "moved",
            f"{len(audit.moved)} of {looked} unasked traits moved: {_names(audit.moved)}.",
        )
    if audit.changed:
        count, names = len(audit.changed), _names(audit.changed)
        return "open", f"{count} of {looked} unasked traits changed, without a placebo: {names}."
    shown = (
        "The one unasked trait was not" if looked == 1 else f"None of {looked} unasked traits was"
    )
    if not audit.placebos:
        return "open", f"{shown} shown to change; no placebo was measured."
    return "still", f"{shown} shown to move."


def _names(lines: Sequence[Line]) -> str:
    names = [line.looked.name for line in lines]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")


def _notes(audit: Audit) -> list[str]:
    notes = []
    if audit.lines and not audit.placebos:
        notes.append(
            "No placebo was measured. Any training changes traits such as length: whether this one "
            "changes them by more takes the same training on pairs without a preference."
        )
    elif audit.lines and audit.placebos < FEW_PLACEBOS:
        notes.append(
            f"{audit.placebos} placebo{'s' * (audit.placebos > 1)} measured: with fewer than "
            f"{FEW_PLACEBOS} only large changes can be separated from chance."
        )
    if audit.moved and audit.changed:
        notes.append(f"Changed as well, without a placebo: {_names(audit.changed)}.")
    for each in audit.features:
        if each.beyond is None:
            notes.append("Features were compared with no placebo, so they decide nothing here.")
        else:
            of_placebo = (
                "" if each.of_placebo is None else f" (a placebo would move {each.of_placebo:.1f})"
            )
            notes.append(
                f"{each.beyond:,} of {each.tested:,} features moved beyond the placebo's band"
                f"{of_placebo}; whether a feature is the asked trait is for its reader to decide."
            )
    return notes


def _row(line: Line) -> list[str | Cell]:
    looked = line.looked
    low, high = looked.effect.low, looked.effect.high
    ends = (low, high) if isfinite(low) and isfinite(high) else (None, None)
    verdict = Cell("asked for", "asked")
    if not looked.asked:
        moved = Cell("moved", "bad") if line.band else Cell("changed, no placebo", "open")
        verdict = moved if line.moved else Cell("not shown to move", "still")
    placebos = ", ".join(signed(value, 2) for value in looked.placebos[:5]) or "none"
    if line.band:
        placebos += f"; band {interval(*line.band, lambda value: signed(value, 2))}"
    drawn = forest(looked.effect, looked.spread, line.band, looked.placebos, moved=line.moved)
    return [
        Cell(looked.name, "name"),
        plain(looked.before),
        f"{signed(looked.effect.mean)} {interval(*ends, signed)}{_unit(looked.unit)}",
        placebos,
        NOTHING if looked.asked else q_text(line.q),
        Cell(NOTHING, "still", drawn),
        verdict,
    ]


def _unit(unit: str) -> str:
    """Return the unit behind a figure; one that begins with a number in parentheses."""
    return f" ({unit})" if unit[:1].isdigit() else f" {unit}"


def _features(features: Features) -> list[Any]:
    """Return the features that moved, whose meaning the reader compares with what was asked."""
    rows = [
        [
            Cell(f"{row['feature']}: {feature_text(row)}", "name"),
            f"{signed(row['effect'])} {interval(row['low'], row['high'], signed)}",
            ", ".join(signed(size, 2) for size in row["placebo_size"]) or "none",
            q_text(row["q"]),
            signed(row["size"], 2),
            Cell("moved" if features.beyond is not None else "changed, no placebo", "open"),
        ]
        for row in features.rows[:FEATURES_SHOWN]
    ]
    if not rows:
        return []
    header = ["feature", "change [95 %]", "placebo, size", "q", "size", "verdict"]
    note = left_out(len(features.rows), len(rows), "the section on features", "features")
    return [Table("Features, asked for or not", header, rows, note)]
