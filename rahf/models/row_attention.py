"""Attention over packed rows, row by row: the plain path.

A CPU's kernel leaves nothing out above the diagonal of a square of up to 512 tokens, so that there
it runs for a few tokens of a row at a time. Knows spans and transformers' sdpa attention; knows no
model and no choice.
"""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Span = tuple[int, int]

PIECE = 128
"""Tokens of a row whose attention runs at once on a CPU."""

MASK_ROOM = 512
"""The masks of pieces are cut out of masks for multiples of so many earlier tokens."""


def attention_row_by_row(
    module: nn.Module,
    query: Float[Tensor, "batch heads seq head"],
    key: Float[Tensor, "batch key_heads seq head"],
    value: Float[Tensor, "batch key_heads seq value"],
    row_spans: list[list[Span]],
    window: int | None = None,
    **options: Any,
) -> Float[Tensor, "batch seq heads value"]:
    """Run causal attention of each row by itself, in the dtype of the query.

    Args:
        row_spans: places of the tokens of each row; the last span is the row's own.
        options: of transformers' sdpa attention.
    """
    on_cpu, dtype = query.device.type == "cpu", query.dtype
    if on_cpu:
        # Its kernel is several times slower in 16 bits, its backward most of all.
        wide = torch.promote_types(dtype, torch.float32)
        query, key, value = (tensor.to(wide) for tensor in (query, key, value))
    queries, keys, values = (_own_tokens(tensor, row_spans) for tensor in (query, key, value))
    outputs = []
    for spans in row_spans:
        start, stop = spans[-1]
        row = _row(keys, spans), _row(values, spans), window
        if on_cpu:
            with torch.autocast("cpu", enabled=False):
                outputs.append(attention_in_pieces(queries[start], *row, **options))
        else:
            whole = attention_in_whole_rows(module, _row(queries, spans), *row, **options)
            outputs.append(whole[:, start - stop :])
    return torch.cat(outputs, dim=1).to(dtype)


def _own_tokens(tensor: Tensor, row_spans: list[list[Span]]) -> dict[int, Tensor]:
    """Return the tokens that are each row's own, by where they start.

    They have no gaps, so that one split cuts them and its backward fills no zeros.
    """
    own = [spans[-1] for spans in row_spans]
    parts = tensor.split([stop - start for start, stop in own], dim=2)
    return {start: part for (start, _), part in zip(own, parts, strict=True)}


def _row(own: dict[int, Tensor], spans: list[Span]) -> Tensor:
    """Return all tokens of a row. A shared part is the beginning of another row's own tokens."""
    shared = [own[start][:, :, : stop - start] for start, stop in spans[:-1]]
    last = own[spans[-1][0]]
    return torch.cat([*shared, last], dim=2) if shared else last


def attention_in_whole_rows(
    module: nn.Module,
    query: Float[Tensor, "batch heads seq head"],
    key: Float[Tensor, "batch key_heads seq head"],
    value: Float[Tensor, "batch key_heads seq head"],
    window: int | None = None,
    **options: Any,
) -> Float[Tensor, "batch seq heads head"]:
    """Run causal attention of all tokens of a row, without a mask where none is needed.

    The fast kernels of a GPU take no mask, and skip what is above the diagonal.
    """
    mask = window_mask(query, window)
    return sdpa_attention_forward(module, query, key, value, mask, **options)[0]


def attention_in_pieces(
    query: Float[Tensor, "batch heads queries head"],
    key: Float[Tensor, "batch key_heads seq head"],
    value: Float[Tensor, "batch key_heads seq head"],
    window: int | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> Float[Tensor, "batch queries heads head"]:
    """Run causal attention of the last tokens of a row, PIECE tokens at a time.

    Each piece attends to the tokens before its end.
    """
    before, outputs = key.shape[2] - query.shape[2], []
    for piece in query.chunk(-(-query.shape[2] // PIECE), dim=2):
        end = before + piece.shape[2]
        mask = piece_mask(piece.shape[2], before, window, query.dtype)
        outputs.append(
            nn.functional.scaled_dot_product_attention(
                piece,
                key[:, :, :end],
                value[:, :, :end],
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=True,  # transformers would copy the keys for every head beside a mask
            )
        )
        before = end
    return torch.cat(outputs, dim=2).transpose(1, 2)


def piece_mask(
    queries: int, before: int, window: int | None, dtype: torch.dtype
) -> Float[Tensor, "queries seq"] | None:
    """Return what is added to the scores of a piece with `before` tokens before it.

    None where the kernel's own causal mask is enough.
    """
    if before == 0 and (window is None or queries <= window):
        return None
    room = -(-before // MASK_ROOM) * MASK_ROOM
    return _widest_mask(room, window, dtype)[:queries, room - before : room + queries]


@lru_cache(maxsize=4)
def _widest_mask(
    before: int, window: int | None, dtype: torch.dtype
) -> Float[Tensor, "queries seq"]:
    """Return the mask whose last columns serve every piece that is shorter or further ahead."""
    seen = torch.ones(PIECE, before + PIECE, dtype=torch.bool, device="cpu").tril(before)
    if window is not None:
        seen = seen.triu(before - window + 1)
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -torch.inf)


def window_mask(query: Tensor, window: int | None) -> Bool[Tensor, "seq seq"] | None:
    """Return which of the last `window` tokens each token attends to; None where these are all."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return ones.tril() & ~ones.tril(-window)
