"""The held-out split of a recipe: a split of the data, or a share of the training prompts.

Reads the names of local splits; knows no row.
"""

from typing import Any

from rahf.data.sources import DataSource, local_path, local_splits
from rahf.recipe.data_options import MOST_HELD_OUT
from rahf.recipe.model_files import is_local

DEFAULT_TEST_SPLIT = "test"
"""Replaced by a share where the data has only one split, of another name."""

HELD_OUT = "held out"
"""Name of the split that is a share of the training prompts."""


def held_out_split(data: Any) -> str | None:
    """Return the held-out split: its name, HELD_OUT, or None where nothing is held out.

    Args:
        data: DataOptions, also those of a refused recipe. DEFAULT_TEST_SPLIT of a data set on the
            Hub is returned as it is: its splits are not known here.
    """
    split = data.dataset_test_split
    missing = split is None or data.datasets is not None or _only_split_is_another(data, split)
    return split if not missing else HELD_OUT if data.test_share else None


def held_out_count(data: Any, rows: int) -> int:
    """Return how many of the training rows are held out, where each has a prompt of its own."""
    if held_out_split(data) != HELD_OUT or rows < 2:
        return 0
    return min(max(1, round(data.test_share * rows)), MOST_HELD_OUT, rows - 1)


def _only_split_is_another(data: Any, split: str) -> bool:
    if split != DEFAULT_TEST_SPLIT or not is_local(data.dataset_name):
        return False
    try:
        local = local_path(DataSource(data.dataset_name, data.dataset_config))
        return (
            local is not None
            and len({*local_splits(local), split}) == 2
            and split not in (local_splits(local))
        )
    except ValueError:  # reported where the data is loaded
        return False
