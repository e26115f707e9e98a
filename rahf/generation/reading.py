"""How a model reads rows while they are written, checked when it first writes any.

Rows of unlike lengths form one batch, finished ones leave the batch, and a beginning that all
prompts share is read once: these are ways to be fast, and a model takes those that change none of
its logits. Knows models; knows no prompt and no text.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rahf.generation.unfinished import Unfinished
from rahf.models.capture import without_adapters
from rahf.models.kv_cache import only_keys_and_values, takes_cache
from rahf.models.packing import evaluated, tolerance

logger = logging.getLogger(__name__)


class Reading(NamedTuple):
    """The ways to be fast that are exact for a model."""

    caches: bool  # what it has read is kept from token to token
    pads: bool  # rows of unlike lengths form one batch, the shorter ones padded
    drops: bool  # a finished row leaves the batch
    shares: bool  # a beginning that all prompts share is read once


_found: "WeakKeyDictionary[nn.Module, Reading]" = WeakKeyDictionary()
"""What has been found for each model, without its adapters."""


def reading_of(model: nn.Module) -> Reading:
    """Return how `model` reads rows. A warning names what is not exact for it, once."""
    base = without_adapters(model)
    if base not in _found:
        with evaluated(model):
            _found[base], reasons = _checked(model)
        if reasons:
            logger.warning(
                "generation is slower for this model (%s), its results are the same: %s.",
                base.config.get_text_config().model_type,
                "; ".join(reasons),
            )
    return _found[base]


CHECKED_LENGTHS, CHECKED_STEPS = (9, 4, 6), 3
"""Ids of the rows that are read alone and together, and tokens that each is extended by."""

ALL = Reading(caches=True, pads=True, drops=True, shares=True)
SLOWER = (
    (ALL._replace(shares=False), "what prompts share is read for each"),
    (ALL._replace(shares=False, drops=False), "finished rows stay in the batch"),
    (Reading(True, False, False, False), "rows of unlike lengths are read apart"),
    (Reading(False, False, True, False), "rows are read from their first id for every token"),
)
"""Ways of reading, tried in this order, and what is slower in each than in the way before."""


def _checked(model: nn.Module) -> tuple[Reading, list[str]]:
    """Return the fastest way of reading that is exact, and why no faster one is."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 1 + sum(CHECKED_LENGTHS)) * 7919 % vocabulary
    rows = [row.tolist() for row in ids.split(CHECKED_LENGTHS)]
    if not takes_cache(without_adapters(model)):
        reading, slower = SLOWER[-1]
        return reading, [f"{slower}, since its forward takes no cache"]
    if _holds_keys_and_values(model, rows[-1]):
        return ALL, []
    alone = torch.cat([_read(model, [row], SLOWER[-1][0]) for row in rows])
    reasons, wrong = [], ""
    for reading, slower in SLOWER:
        reasons.append(slower + wrong)
        difference = _differs(model, rows, alone, reading) if reading.caches else None
        if difference is None:
            break
        wrong = f", since otherwise {difference}"
    return reading, reasons if reading.caches else reasons[-1:]  # without a cache, all holds


def _holds_keys_and_values(model: nn.Module, row: list[int]) -> bool:
    batch = Unfinished.prompts([row], 0, next(model.parameters()).device)
    try:
        batch.forward(model)
    except Exception:  # whatever it is, the same row is read again in other ways, and that is named
        return False
    return only_keys_and_values(batch.cache)


def _read(
    model: nn.Module, rows: Sequence[list[int]], reading: Reading
) -> Float[Tensor, "rows vocab"]:
    """Read rows and a few further ids; return the last logits, less their mean.

    Where several rows are read and finished ones leave, the first one leaves on the way.
    """
    device = next(model.parameters()).device
    batch = Unfinished.prompts(rows, 0, device, caches=reading.caches)
    logits = batch.forward(model)
    for step in range(CHECKED_STEPS):
        leaving = int(step == 1 and len(rows) > 1 and reading.drops)
        batch.extend(torch.full_like(batch.mask[:, 0], step + 1), range(leaving, len(logits)))
        logits = batch.forward(model)
    logits = logits.float()
    return logits - logits.mean(-1, keepdim=True)


def _differs(
    model: nn.Module, rows: list[list[int]], alone: Float[Tensor, "rows vocab"], reading: Reading
) -> str | None:
    """Return how reading in this way differs from reading rows alone without a cache."""
    try:
        batches = [rows] if reading.pads else [[row] for row in rows]
        found = torch.cat([_read(model, batch, reading) for batch in batches])
    except Exception as error:  # whatever it is, the same rows have just been read alone
        return f"its cache fails ({type(error).__name__}: {error})"
    expected = alone[-len(found) :]
    difference = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()
    if difference <= tolerance(model):
        return None
    return f"its logits differ (relative difference {difference:.2g})"
