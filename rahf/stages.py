"""A stage is run once: it leaves a record of what it was made with, and says so the next time.

Knows ranks and records; knows no recipe and no method.
"""

from collections.abc import Callable
from typing import Any

from accelerate import PartialState

from rahf.artifacts import StageRecord


def is_complete(record: StageRecord, name: str) -> bool:
    """Whether the stage is done, which is then told; the same on every rank.

    Raises:
        ValueError: the folder holds it, finished or begun, made with other settings.
    """
    state = PartialState()
    complete = record.is_complete()
    state.wait_for_everyone()
    if complete:
        state.print(f"{name}: complete in {record.folder}")
    return complete


def run_recorded(record: StageRecord, name: str, run: Callable[[], dict[str, Any]]) -> None:
    """Run what is not complete; `run` gives the figures that are kept in the record."""
    state = PartialState()
    state.print(f"{name}: writing {record.folder}")
    if state.is_main_process:
        record.begin()
    results = run()
    state.wait_for_everyone()
    if state.is_main_process:
        record.finish(**results)
