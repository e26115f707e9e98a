"""The audit of each training: its lines, the features that moved, and a verdict in a sentence.

Traits are tested here; features were tested by `rahf features diff`, over all that it looked at.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rahf.interpret.audit.changes import Line, audit
from rahf.interpret.audit.sources import Skipped, looked_at
from rahf.report.page.found import Found
from rahf.report.page.reading import Part, Reader, Run, number


class Features(NamedTuple):
    """What a diff shows of the features of one dictionary."""

    part: Part
    tested: int
    beyond: int | None  # moved beyond the placebo's band; None: no placebo
    of_placebo: float | None  # how many of a placebo would
    rows: list[Mapping[str, Any]]  # that moved and were not asked for, most first
    known: list[str]  # numbers of all that are listed


class Audit(NamedTuple):
    """What a training changed besides what it was for."""

    run: Run | None
    lines: list[Line]
    features: list[Features]
    skipped: list[Skipped]
    placebos: int

    @property
    def unasked(self) -> list[Line]:
        return [line for line in self.lines if not line.looked.asked]

    @property
    def moved(self) -> list[Line]:
        """Traits that moved beyond what placebos do."""
        return [line for line in self.lines if line.moved and line.band]

    @property
    def changed(self) -> list[Line]:
        """Traits that changed, and that no placebo was measured on."""
        return [line for line in self.lines if line.moved and not line.band]


def audits_of(found: Found, asked: Sequence[str] = ()) -> list[Audit]:
    """Return an audit for each training; one without a training where only other results are there.

    Raises:
        ValueError: a name in `asked` is none of what was looked at.
    """
    runs: list[Run | None] = [*found.runs] or [None]
    reader = Reader(found.problems)
    audits = [_audit(run, found, asked, reader) for run in runs]
    known = {line.looked.name for each in audits for line in each.lines}
    known |= {number for each in audits for part in each.features for number in part.known}
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(
            f"--asked {unknown[0]}: nothing of that name was looked at; choose from "
            f"{', '.join(sorted(known)[:30]) or 'nothing'}."
        )
    return audits


def _audit(run: Run | None, found: Found, asked: Sequence[str], reader: Reader) -> Audit:
    diffs = [part for part in found.parts["rahf features diff"] if _belongs(part, run, found)]
    read = [reader.kept(part.path, lambda part=part: _features(part, asked)) for part in diffs]
    features = [each for each in read if each]
    if run is None:
        return Audit(None, [], features, [], 0)
    preferences = [
        part for part in found.parts["rahf evaluate preferences"] if _belongs(part, run, found)
    ]
    kept = reader.kept(run.folder, lambda: looked_at(run, found.placebos, preferences, asked))
    looked, skipped = kept or ([], [Skipped("traits", "damaged, see below")])
    lines = audit(looked)
    with_placebo = max((len(line.looked.placebos) for line in lines), default=0)
    return Audit(run, lines, features, skipped, with_placebo)


def _belongs(part: Part, run: Run | None, found: Found) -> bool:
    """Return whether figures are of the model of this training."""
    if run is None or len(found.runs) == 1:
        return True
    model = part.figures.get("model") or part.figures.get("adapter") or ""
    return Path(str(model)).resolve() == run.folder.resolve()


def _features(part: Part, asked: Sequence[str]) -> Features:
    figures = part.figures
    rows = [row for row in figures["features"] if row["moved"] and str(row["feature"]) not in asked]
    beyond = figures.get("beyond_placebo")
    expected = figures.get("beyond_of_placebos")
    return Features(
        part,
        int(number(figures["features_tested"])),
        None if beyond is None else int(number(beyond)),
        None if expected is None else number(expected),
        rows,
        [str(row["feature"]) for row in figures["features"]],
    )
