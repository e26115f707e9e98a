"""Outcomes of the checks of `gpu_check.py` -> one table in markdown. Measures nothing."""

from collections.abc import Sequence
from typing import Any

from parts.checks import Outcome

GIB = 2**30
HEAD = (
    "check",
    "s/step",
    "over rahf",
    "needed TFLOP/step",
    "of the ceiling",
    "peak GiB",
    "planned GiB",
    "last loss",
    "took s",
)


def table(outcomes: Sequence[Outcome], ceiling: dict[str, Any]) -> str:
    """Return the device, a row for each check, and the reasons of those that found nothing."""
    rate = ceiling["flops_per_second"]
    size = "" if ceiling["memory"] is None else f" of {ceiling['memory'] / GIB:.0f} GiB"
    lines = [
        f"{ceiling['name']}{size}; ceiling (bfloat16 matrix products): {rate / 1e12:.3g} TFLOP/s",
        "",
        f"| {' | '.join(HEAD)} |",
        "|---" * len(HEAD) + "|",
        *(f"| {' | '.join(_cells(outcome, outcomes, rate))} |" for outcome in outcomes),
    ]
    without = [outcome for outcome in outcomes if outcome.status != "done"]
    return "\n".join(
        [*lines, "", *(f"- {x.name}: {x.status}: {x.reason}" for x in without)]
    ).strip()


def _cells(outcome: Outcome, outcomes: Sequence[Outcome], rate: float) -> list[str]:
    found = outcome.figures
    if outcome.status != "done" or "seconds_per_step" not in found:
        told = found.get("tests", outcome.status)
        return [outcome.name, told, *[""] * (len(HEAD) - 3), f"{outcome.seconds:.0f}"]
    seconds, needed = found["seconds_per_step"], found["needed_flops"]
    own = _rahf_of(outcome, outcomes)
    return [
        outcome.name,
        f"{seconds:.3f}",
        "" if own is None else f"{seconds / own:.2f}",
        f"{needed / 1e12:.3g}",
        f"{needed / seconds / rate:.0%}",
        f"{found['peak_bytes'] / GIB:.2f}",
        f"{found['planned_bytes'] / GIB:.2f}" if "planned_bytes" in found else "",
        f"{found['last_loss']:.4f}" if "last_loss" in found else "",
        f"{outcome.seconds:.0f}",
    ]


def _rahf_of(outcome: Outcome, outcomes: Sequence[Outcome]) -> float | None:
    """Return the seconds of `rahf` on the same rows; None where these are other rows."""
    if "planned_bytes" in outcome.figures:
        return None
    wanted = f"{outcome.name.split()[0]} rahf"
    found = [other.figures for other in outcomes if other.name == wanted]
    return found[0].get("seconds_per_step") if found else None
