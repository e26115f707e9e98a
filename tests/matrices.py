"""Combinations that a test is run on: a few by default, all of them with the slow tests."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_unless(usual: Callable[..., bool], cases: Iterable[tuple]) -> list[Any]:
    """Return the cases as parameters; those for which `usual` is false are marked slow."""
    return [pytest.param(*case, marks=() if usual(*case) else pytest.mark.slow) for case in cases]
