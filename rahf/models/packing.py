"""Attention over packed rows: rows of one sequence that do not attend to each other.

In most decoders only attention reads other tokens. Rows can then follow one another without
padding, and share their common beginning, whose states depend on no later token.
Attention then keeps to the rows (`packed_attention.py`). Some decoders do more between tokens, as
recurrence and convolution: whether packing is exact is checked on each model. Knows models; knows
no data and no loss.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from rahf.distributed.sharding import gathered
from rahf.models.own_training import turn_off_router_logits
from rahf.models.packed_attention import packed_attention
from rahf.models.row_attention import Span

logger = logging.getLogger(__name__)

PACKED = "rahf_packed_sdpa"
"""Name of the attention in a model's configuration. Without `row_spans` it is `sdpa`."""

TOLERANCE, COARSE_TOLERANCE = 1e-2, 0.1
"""Mean relative difference of the logits of packed rows and of rows alone that is rounding: in
float32, and in 16 bits or with quantised weights.
"""

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""Types of layers (`layer_types` of a configuration) that read other tokens by attention only."""

_padded: WeakSet[PreTrainedModel] = WeakSet()
"""Models for which `check_packing` has failed."""


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Let `model` take packed rows, if its attention is `sdpa` and packing is exact for it.

    Returns:
        Whether the model takes packed rows now. A model for which packing is wrong is left as it
        was, and a warning names its family and the reason, once.
    """
    turn_off_router_logits(model)
    if model.config.get_text_config()._attn_implementation == "sdpa" and model not in _padded:
        AttentionInterface.register(PACKED, packed_attention)
        AttentionMaskInterface.register(PACKED, sdpa_mask)
        model.set_attn_implementation(PACKED)
        wrong = what_packing_breaks(model)
        if wrong is not None:
            model.set_attn_implementation("sdpa")
            _padded.add(model)
            logger.warning(
                "rows are padded, not packed, for this model (%s): %s. Results are the same; a "
                "step takes longer.",
                model.config.get_text_config().model_type,
                wrong,
            )
    return takes_packed_rows(model)


def takes_packed_rows(model: nn.Module) -> bool:
    """Return whether `use_packed_attention` holds for `model`, or for the base under it."""
    return model.config.get_text_config()._attn_implementation == PACKED


def packed_inputs(spans: list[list[Span]], device: torch.device) -> dict[str, Any]:
    """Return what a forward over packed rows takes beside ids and positions.

    Models use a mask of four dimensions as it is and make none of their own. A mask of one
    key for many marks a packed pass: attention that gets it without `row_spans` fails.
    """
    return {"row_spans": spans, "attention_mask": torch.ones(1, 1, 1, 1, device=device)}


CHECKED_ROWS, SHORT_WINDOW = (5, 9), 4
"""Tokens of the two rows that are run packed and alone when a model is first packed, and of the
sliding windows meanwhile.
"""


def what_packing_breaks(model: PreTrainedModel) -> str | None:
    """Run two short rows packed and alone; return what differs, or None where nothing does.

    Windows are shortened meanwhile, so that a window which only a mask would keep is noticed. The
    model is left as it was.
    """
    unknown = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - KNOWN_LAYERS
    if unknown:
        return f"it has layers of the type {', '.join(sorted(unknown))}"
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 1 + sum(CHECKED_ROWS), device=model.device) * 7919 % vocabulary
    rows = ids.split(CHECKED_ROWS)
    positions = torch.cat([torch.arange(len(row), device=model.device) for row in rows])
    first, last = CHECKED_ROWS[0], sum(CHECKED_ROWS)
    packing = packed_inputs([[(0, first)], [(first, last)]], model.device)
    with gathered(model), evaluated(model), short_windows(model):
        alone = [
            _logits(model, row, position)
            for row, position in zip(rows, positions.split(CHECKED_ROWS), strict=True)
        ]
        try:
            packed = _logits(model, ids, positions, **packing)
        except Exception as error:  # whatever it is, the same rows have just run alone
            return f"its forward fails on packed rows ({type(error).__name__}: {error})"
    expected = torch.cat(alone)
    difference = ((packed - expected).norm(dim=-1) / expected.norm(dim=-1)).mean().item()
    if difference <= tolerance(model):
        return None
    return (
        f"a packed row has other logits than the row alone (relative difference {difference:.2g})"
    )


def tolerance(model: nn.Module) -> float:
    """Return the relative difference of logits that is rounding for `model`."""
    exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    return TOLERANCE if exact else COARSE_TOLERANCE


def _logits(model: nn.Module, ids: Tensor, positions: Tensor, **inputs: Any) -> Tensor:
    """Return float32 logits of one line of tokens, less their mean, which no probability reads."""
    given = {"input_ids": ids[None], "position_ids": positions[None], **inputs}
    logits = model(**given, use_cache=False).logits[0].float()
    return logits - logits.mean(-1, keepdim=True)


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Run `model` in evaluation mode and without gradients; restore the mode of every module."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def short_windows(model: PreTrainedModel) -> Iterator[None]:
    """Shorten every sliding window of `model` to SHORT_WINDOW tokens."""
    before = [
        (holder, holder.sliding_window)
        for holder in (model.config.get_text_config(), *model.modules())
        if isinstance(getattr(holder, "sliding_window", None), int)
    ]
    for holder, window in before:
        holder.sliding_window = min(window, SHORT_WINDOW)
    try:
        yield
    finally:
        for holder, window in before:
            holder.sliding_window = window
