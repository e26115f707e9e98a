"""Numbers as the page shows them: three digits, a minus sign, the interval beside the mean."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from rahf.report.page.blocks import Cell
from rahf.report.page.reading import number

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
LONGEST = 1200
"""Characters of a text from data; what is cut is said."""


def plain(value: Any, digits: int = 3) -> str:
    """Return a number with so many significant digits; a dash where there is none."""
    if value is None:
        return NOTHING
    value = number(value)
    text = f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
    if "e" in text and abs(value) >= 1e-4:
        text = f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def signed(value: Any, digits: int = 3) -> str:
    text = plain(value, digits)
    return text if text.startswith(MINUS) or value is None or value == 0 else f"+{text}"


def share(value: Any) -> str:
    return NOTHING if value is None else f"{number(value):.0%}".replace("-", MINUS)


def interval(low: float | None, high: float | None, form=plain) -> str:
    """Return the ends of an interval, or that there is none."""
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        return "(no interval)"
    return f"[{form(low)}, {form(high)}]"


def with_interval(estimate: Mapping[str, Any] | None, form=plain) -> str:
    """Return a mean and its interval."""
    if not estimate or estimate.get("mean") is None:
        return NOTHING
    return f"{form(estimate['mean'])} {interval(estimate['low'], estimate['high'], form)}"


def verdict(low: float | None, high: float | None) -> Cell:
    """Return whether an interval of a gain excludes zero, and on which side."""
    if low is not None and low > 0:
        return Cell("better", "good")
    return Cell("worse", "bad") if high is not None and high < 0 else Cell("open", "open")


def with_sd(value: Mapping[str, Any] | None, form=plain) -> str:
    """Return a mean over seeds and its standard deviation."""
    if value is None:
        return NOTHING
    return form(value["mean"]) + (f" ± {plain(value['sd'], 2)}" if "sd" in value else "")


def q_text(value: float) -> str:
    """Return a q value; small ones as a bound."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: Any) -> str:
    """Return a time in the unit that a reader would use."""
    seconds = number(seconds)
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def cut(text: Any, longest: int = LONGEST) -> str:
    """Return a text of data, and how much of a long one is left out."""
    text = str(text)
    if len(text) <= longest:
        return text
    return f"{text[:longest]} […{len(text) - longest:,} more characters]"


def prompt_text(prompt: Any) -> str:
    """Return the last message of a prompt, which may be a chat."""
    if isinstance(prompt, list):
        prompt = prompt[-1].get("content", "") if prompt else ""
    return cut(prompt)


def spread_over(rows: Sequence[Any], count: int) -> list[Any]:
    """Return up to `count` rows, evenly over all of them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[place * len(rows) // count] for place in range(count)]


def left_out(total: int, shown: int, where: Any, what: str = "rows") -> str:
    """Return a line on what the page leaves out, and where it is; nothing where all is there."""
    return f"{total - shown:,} more {what} in {where}." if total > shown else ""
