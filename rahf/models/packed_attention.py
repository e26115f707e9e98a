"""Attention over packed rows as transformers calls it: which of two ways a pass takes.

On a GPU a complete pack is one kernel a layer (`pack_kernel.py`), where a call per row would be
many small ones; elsewhere it runs row by row (`row_attention.py`), the plain path. Both are
compared when a kind of pass first takes the kernel. Knows transformers' attention interface.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rahf.models.pack_kernel import BLOCK, attention_in_one_kernel, what_differs
from rahf.models.row_attention import Span, attention_row_by_row

logger = logging.getLogger(__name__)

KERNEL_DEVICES = ["cuda"]
"""Types of device on which a pack is one kernel a layer; elsewhere it is attended row by row."""

_holds: dict[tuple, bool] = {}
"""Whether the kernel gives what single rows give, by kind of pass."""


@contextmanager
def kernel_only_on(*devices: str) -> Iterator[None]:
    """Attend packs in one kernel on these types of device; on none, row by row everywhere."""
    before = [*KERNEL_DEVICES]
    KERNEL_DEVICES[:] = devices
    try:
        yield
    finally:
        KERNEL_DEVICES[:] = before


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads seq head"],
    key: Float[Tensor, "batch key_heads seq head"],
    value: Float[Tensor, "batch key_heads seq head"],
    attention_mask: Tensor | None,
    row_spans: list[list[Span]] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch seq heads head"], None]:
    """Run transformers' sdpa attention, within rows where `row_spans` are given.

    They are the places of the tokens of each row; the last span is the row's own. Rows behind the
    end of the tokens are skipped.

    Raises:
        ValueError: the pass is packed (see `packed_inputs`), but a block dropped its `row_spans`.
    """
    if row_spans is None:
        _refuse_packed_pass(module, key, attention_mask)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    row_spans = [spans for spans in row_spans if spans[-1][1] <= query.shape[2]]
    given = query, key, value
    if takes_kernel(module, *given, row_spans, sliding_window, options):
        scaling = options.get("scaling")
        output = attention_in_one_kernel(*given, _frozen(row_spans), sliding_window, scaling)
        return output.to(query.dtype), None
    return attention_row_by_row(module, *given, row_spans, sliding_window, **options), None


def takes_kernel(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_spans: list[list[Span]],
    window: int | None,
    options: dict[str, Any],
) -> bool:
    """Return whether a pass is one kernel: by its device, what it asks for, and a comparison.

    The kernel has no dropout and no second derivative, which is wanted where torch's fused kernels
    are switched off. A pack of one block gains nothing.
    """
    device = query.device.type
    plain = device not in KERNEL_DEVICES or not torch.backends.cuda.flash_sdp_enabled()
    if plain or options.get("dropout") or options.get("is_causal") is False:
        return False
    if query.shape[0] != 1 or query.shape[2] <= BLOCK:
        return False
    cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    shapes = tuple((*tensor.shape[1::2], tensor.dtype) for tensor in (query, key, value))
    kind = type(module), device, cast, shapes, window is None, options.get("scaling")
    if kind not in _holds:
        wrong = _what_differs(module, (query, key, value), row_spans, window, options)
        _holds[kind] = wrong is None
        if wrong is not None:
            logger.warning(
                "attention of packed rows runs row by row, not in one kernel, for this model (%s, "
                "%s): %s. Results are the same; a step takes longer.",
                type(module).__name__,
                cast or query.dtype,
                wrong,
            )
    return _holds[kind]


def _what_differs(
    module: nn.Module,
    given: tuple[Tensor, Tensor, Tensor],
    row_spans: list[list[Span]],
    window: int | None,
    options: dict[str, Any],
) -> str | None:
    """Compare both ways on the first rows of a pack: two at least, and more than two blocks."""
    ends = [spans[-1][1] for spans in row_spans]
    enough = (count for count, end in enumerate(ends, 1) if count > 1 and end > 2 * BLOCK)
    first = row_spans[: next(enough, len(ends))]
    end = first[-1][-1][1]
    kernel = partial(attention_in_one_kernel, spans=_frozen(first), window=window)
    plainly = partial(attention_row_by_row, module, row_spans=first, window=window, **options)
    return what_differs(
        partial(kernel, scaling=options.get("scaling")),
        plainly,
        [tensor[:, :, :end] for tensor in given],
    )


def _frozen(row_spans: list[list[Span]]) -> tuple[tuple[Span, ...], ...]:
    return tuple(tuple(map(tuple, spans)) for spans in row_spans)


def _refuse_packed_pass(module: nn.Module, key: Tensor, mask: Tensor | None) -> None:
    if mask is not None and mask.shape[-1] == 1 < key.shape[2]:
        raise ValueError(
            f"{type(module).__name__} got no row_spans in a packed pass: the blocks of this model "
            "do not pass on `row_spans`. Set packing: false."
        )
