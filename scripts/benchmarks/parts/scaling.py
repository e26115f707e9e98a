"""How the cost of a step grows with the length of rows and with their number.

Rows of one length with a prompt too short to be shared. Cost per token is the same in every cell
but for attention, whose share grows with the length of a row and not with the number of rows.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset
from parts.measure import differences
from parts.variants import Meter, rahf
from parts.workload import SPECIAL, Workload, prepare

PROMPT = 8


def rows_of_length(pairs: int, length: int, vocab: int) -> list[dict[str, Any]]:
    """Return pairs whose rows have `length` tokens in every view."""
    generator, rows = np.random.default_rng(0), []

    def ids(count: int) -> list[int]:
        return generator.integers(SPECIAL, vocab, count).tolist()

    for row in range(pairs):
        sides = {f"{side}_ids": ids(length - PROMPT) for side in ("chosen", "rejected")}
        views = ("prompt_ids", "positive_prompt_ids", "negative_prompt_ids")
        rows.append({"row": row, **dict.fromkeys(views, ids(PROMPT)), **sides})
    return rows


def per_step(workload: Workload, length: int, pairs: int, steps: int, meter: Meter) -> list[float]:
    """Return what the meter reads in each of `steps` steps after one that is not counted."""
    workload = replace(workload, pairs=pairs, folder=workload.folder / f"{length}x{pairs}")
    prepare(workload, steps=1)
    rows = rows_of_length((steps + 1) * pairs, length, workload.config().vocab_size)
    Dataset.from_list(rows).save_to_disk(str(workload.folder / "same_length"))
    workload = replace(workload, row_folder="same_length")
    return differences(rahf(workload, steps + 1, meter, max_response_tokens=length).ends)
