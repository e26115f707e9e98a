"""Numbers of the command line: what is accepted as a count, a seed, a strength or a share.

`parsers` registers them, so that an option names its kind: `type="count"`.
"""

import argparse
import math
import re
from collections.abc import Callable

MOST = 2**31 - 1
LARGEST = 3.4e38  # of float32
STRONGEST = 1e6  # of steering: no state of a model is as large

_WHOLE = re.compile(r"[+-]?[0-9]+")


def _whole(least: int, most: int, kind: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        # int() would take 1_000 and digits of other scripts too, and thousands of digits slowly.
        if not _WHOLE.fullmatch(text) or len(text) > 20 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a {kind}")
        return int(text)

    return read


def _real(right: Callable[[float], bool], kind: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            number = math.nan
        if not abs(number) <= LARGEST or not right(number):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a {kind}")
        return number

    return read


NUMBERS: dict[str, Callable[[str], int | float]] = {
    "count": _whole(1, MOST, f"whole number from 1 to {MOST}"),
    "count from zero": _whole(0, MOST, f"whole number from 0 to {MOST}"),
    "seed": _whole(0, 2**32 - 1, f"seed from 0 to {2**32 - 1}"),
    "rank from zero": _whole(0, 2**16 - 1, f"rank from 0 to {2**16 - 1}"),
    "learning rate": _real(lambda number: 0 <= number < 1000, "number from 0 to below 1000"),
    "positive learning rate": _real(
        lambda number: 0 < number < 1000, "number above 0 and below 1000"
    ),
    "strength": _real(
        lambda number: abs(number) <= STRONGEST, f"number from {-STRONGEST:g} to {STRONGEST:g}"
    ),
    "number": _real(math.isfinite, "finite number"),
    "positive number": _real(lambda number: number > 0, "finite number above 0"),
    "number from zero": _real(lambda number: number >= 0, "finite number of at least 0"),
    "share": _real(lambda number: 0 < number <= 1, "number above 0 and at most 1"),
}
