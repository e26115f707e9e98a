"""What became of the pairs: counts, lengths, dropped rows with the reason, rows with the mask
shown.

Pure functions of tokenised rows; `describe` returns text and prints nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

SIDES = ("chosen", "rejected")

_NAMED_ROWS = 5  # of the rows dropped for one reason
_EXAMPLES = 3  # rows shown
_WIDTH = 1200  # characters of a shown text, at most


@dataclass(frozen=True)
class RowsOfReason:
    """Rows that are dropped for one reason, or of which one thing is ignored."""

    reason: str
    count: int
    first_rows: tuple[int, ...]  # counted from 0 in the loaded data set


@dataclass(frozen=True)
class DataReport:
    """Counts over one tokenised data set; lengths are tokens of the kept rows."""

    loaded: int
    kept: int
    shortened: int  # kept rows with a response cut at its end
    chosen_longer: float  # share of kept rows; what "the longer one wins" would score
    lengths: Mapping[str, tuple[int, ...]]  # column -> values at QUANTILES
    dropped: tuple[RowsOfReason, ...]  # most frequent reason first
    ignored: tuple[
        RowsOfReason, ...
    ] = ()  # what was not read or not written, in how many kept rows
    notes: tuple[str, ...] = ()  # on the chat template


def summarize(
    rows: Sequence[int],
    reasons: Sequence[str | None],
    shortened: Sequence[bool],
    lengths: Mapping[str, np.ndarray],
    ignored: Sequence[Sequence[str]] = (),
    notes: tuple[str, ...] = (),
) -> DataReport:
    """Return a report of one entry a loaded row; lengths of dropped rows are ignored.

    Args:
        ignored: what of each row was not read or not written.
        notes: on the chat template.
    """
    kept = np.array([reason is None for reason in reasons])
    named = zip(rows, ignored, strict=True) if ignored else ()
    of_kept = {name: values[kept] for name, values in lengths.items()}
    longer = of_kept["chosen"] > of_kept["rejected"]
    return DataReport(
        loaded=len(rows),
        kept=int(kept.sum()),
        shortened=int(np.asarray(shortened, dtype=bool)[kept].sum()),
        chosen_longer=float(longer.mean()) if len(longer) else 0.0,
        lengths={name: _quantiles(values) for name, values in of_kept.items()},
        dropped=_counted(
            (row, reason) for row, reason in zip(rows, reasons, strict=True) if reason
        ),
        ignored=_counted((row, what) for row, of_row in named for what in of_row),
        notes=notes,
    )


def _counted(found: Iterable[tuple[int, str]]) -> tuple[RowsOfReason, ...]:
    by_reason: dict[str, list[int]] = {}
    for row, reason in found:
        by_reason.setdefault(reason, []).append(row)
    counted = [
        RowsOfReason(reason, len(rows), tuple(sorted(rows)[:_NAMED_ROWS]))
        for reason, rows in by_reason.items()
    ]
    return tuple(sorted(counted, key=lambda rows: -rows.count))


def as_figures(report: DataReport) -> dict[str, Any]:
    """Return the report as plain values; lengths by the names of the quantiles."""
    return {
        **asdict(report),
        "lengths": {
            column: dict(zip(_quantile_names(), values, strict=False))
            for column, values in report.lengths.items()
        },
    }


def dropped_text(dropped: Sequence[RowsOfReason]) -> str:
    """Return one line a reason: count, reason, the first rows."""
    return "\n".join(
        f"  {found.count:>7,}  {found.reason} "
        f"(row{'s' if found.count > 1 else ''} {', '.join(map(str, found.first_rows))}"
        f"{', ...' if found.count > len(found.first_rows) else ''})"
        for found in dropped
    )


def describe(
    report: DataReport,
    rows: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
) -> str:
    """Return the report as text, with a few rows as the model reads them.

    Between `[[` and `]]` are the response tokens; every view of the prompt is shown.
    Texts over `_WIDTH` characters lose their middle.
    """
    parts = [
        f"{report.kept:,} of {report.loaded:,} pairs kept, "
        f"{report.loaded - report.kept:,} dropped; "
        f"{report.shortened:,} with a response cut to fit; "
        f"chosen is the longer one in {report.chosen_longer:.0%}",
        _length_table(report),
    ]
    if report.dropped:
        parts.append("dropped (rows count from 0)\n" + dropped_text(report.dropped))
    if report.ignored:
        parts.append("ignored (in kept rows)\n" + dropped_text(report.ignored))
    parts += [f"note: {note}" for note in report.notes]
    shown = np.linspace(0, len(rows) - 1, min(_EXAMPLES, len(rows))).round().astype(int)
    parts += [_row_text(rows[int(index)], tokenizer) for index in shown]
    return "\n\n".join(parts)


def _quantiles(values: np.ndarray) -> tuple[int, ...]:
    if len(values) == 0:
        return ()
    return tuple(int(v) for v in np.quantile(values, QUANTILES, method="nearest"))


def _quantile_names() -> list[str]:
    return ["least", *(f"{quantile:.0%}" for quantile in QUANTILES[1:-1]), "most"]


def _length_table(report: DataReport) -> str:
    names = _quantile_names()
    lines = [f"{'tokens':<18}" + "".join(f"{name:>8}" for name in names)]
    for name, values in report.lengths.items():
        lines.append(f"{name:<18}" + "".join(f"{value:>8,}" for value in values))
    return "\n".join(lines)


def _row_text(row: Mapping, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return prompt and both responses, then every other view; its responses are the same ids."""
    chosen, rejected = (_shorten(tokenizer.decode(row[f"{s}_ids"])) for s in SIDES)
    prompt = _shorten(tokenizer.decode(row["prompt_ids"]))
    lines = [
        f"--- row {row['row']}",
        f"prompt and chosen:\n{prompt}[[{chosen}]]",
        f"rejected:\n[[{rejected}]]",
    ]
    for name in row:
        if name.endswith("_prompt_ids"):
            view = _shorten(tokenizer.decode(row[name]))
            label = name.removesuffix("_prompt_ids")
            lines.append(f"{label} view:\n{view}[[{_shorten(chosen, 80)}]]")
    return "\n".join(lines)


def _shorten(text: str, width: int = _WIDTH) -> str:
    if len(text) <= width:
        return text
    left = len(text) - width
    return f"{text[: width // 2]} [... {left:,} characters ...] {text[len(text) - width // 2 :]}"
