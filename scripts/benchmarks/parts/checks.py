"""Checks one after the other within a time budget: what each found, or why it found nothing.

A check that fails ends no other. Knows budgets and outcomes; knows no model and no device.
"""

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?((?:[\w.]*(?:Error|Exception|Interrupt))\b.*)")


class LeftOutError(Exception):
    """Says why a check is not made here."""


Left = Callable[[], float]
"""Gives the seconds that are left of the budget."""


class Check(NamedTuple):
    """One check."""

    name: str
    seconds: float  # that it takes at most on a fast card: less than that left, and it is left out
    run: Callable[[Left], dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of a check."""

    name: str
    status: str  # done, failed or left out
    reason: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_checks(
    checks: Sequence[Check], budget: float, clock: Callable[[], float], tell: Callable[[str], None]
) -> list[Outcome]:
    """Make every check for which `budget` seconds leave time, in their order."""
    started, outcomes = clock(), []

    def left() -> float:
        return budget - (clock() - started)

    for check in checks:
        begun = clock()
        outcome = _outcome(check, left)
        seconds = clock() - begun
        outcomes.append(Outcome(check.name, seconds=seconds, **outcome))
        tell(f"{check.name}: {outcomes[-1].status} {outcomes[-1].reason} ({seconds:.0f} s)")
    return outcomes


def _outcome(check: Check, left: Left) -> dict[str, Any]:
    """Return status, reason and figures of one check."""
    if left() < check.seconds:
        reason = f"{max(0, left()):.0f} s of the budget are left, it may take {check.seconds:.0f}"
        return {"status": "left out", "reason": reason}
    try:
        return {"status": "done", "figures": check.run(left)}
    except LeftOutError as why:
        return {"status": "left out", "reason": str(why)}
    except subprocess.TimeoutExpired:
        return {"status": "left out", "reason": "stopped: the budget was over"}
    except Exception as error:  # whatever it is, the other checks say something all the same
        return {"status": "failed", "reason": reason_of(error)}


def reason_of(error: Exception) -> str:
    """Return one line: of a process that failed, the last error that it has named itself."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = [match[1] for line in lines if (match := ERROR.match(line))]
    # A launcher names its child's command, which says nothing.
    told = [line for line in named if "CalledProcessError" not in line]
    text = told[-1] if told else f"{type(error).__name__}: {lines[-1] if lines else ''}"
    return text if len(text) <= 200 else f"{text[:197]}..."
