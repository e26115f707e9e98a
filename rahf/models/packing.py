"""Attention over packed rows: rows of one sequence that see nothing of each other.

Everything in a decoder but attention treats a token by itself, so that rows may stand one after the
other without padding, and share what they begin with: its states depend on nothing behind it.
Attention is then asked row by row, and on a CPU, whose kernel leaves nothing out above the diagonal
of a square of up to 512 tokens, in pieces of a row. Knows transformers' attention interface; knows
no data and no loss.
"""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PACKED = "rahf_packed_sdpa"
"""Name of the attention in a model's configuration. Without `row_spans` it is `sdpa`."""

PIECE = 128
"""Tokens of a row that are asked at once on a CPU."""

MASK_ROOM = 512
"""The masks of pieces are cut out of masks for multiples of so many earlier tokens."""

Span = tuple[int, int]


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Let `model` take packed rows, if its attention is `sdpa`; says whether it does now."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        AttentionInterface.register(PACKED, packed_attention)
        AttentionMaskInterface.register(PACKED, sdpa_mask)
        model.set_attn_implementation(PACKED)
    return takes_packed_rows(model)


def takes_packed_rows(model: nn.Module) -> bool:
    """Whether `use_packed_attention` has been called on `model`, or on the base under it."""
    return model.config.get_text_config()._attn_implementation == PACKED


def packed_inputs(spans: list[list[Span]], device: torch.device) -> dict[str, Any]:
    """What a forward over packed rows takes beside ids and positions.

    Models leave a mask of four dimensions as it is, and so make none of their own.
    """
    return {"row_spans": spans, "attention_mask": torch.ones(1, 1, 1, 1, device=device)}


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
    """transformers' sdpa attention, row by row where `row_spans` say where the tokens of each row
    stand; the last of its spans is its own. Rows behind the end of the tokens are left out.
    """
    if row_spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    row_spans = [spans for spans in row_spans if spans[-1][1] <= query.shape[2]]
    on_cpu, dtype = query.device.type == "cpu", query.dtype
    if on_cpu:
        # Its kernel is several times slower in 16 bits, its backward most of all.
        wide = torch.promote_types(dtype, torch.float32)
        query, key, value = (tensor.to(wide) for tensor in (query, key, value))
    queries, keys, values = (_own_tokens(tensor, row_spans) for tensor in (query, key, value))
    outputs = []
    for spans in row_spans:
        start, stop = spans[-1]
        row = _row(keys, spans), _row(values, spans), sliding_window
        if on_cpu:
            with torch.autocast("cpu", enabled=False):
                outputs.append(attention_in_pieces(queries[start], *row, **options))
        else:
            whole = attention_in_whole_rows(module, _row(queries, spans), *row, **options)
            outputs.append(whole[:, start - stop :])
    return torch.cat(outputs, dim=1).to(dtype), None


def _own_tokens(tensor: Tensor, row_spans: list[list[Span]]) -> dict[int, Tensor]:
    """The tokens that are each row's own, by where they start. They follow each other without a
    gap, so that one split cuts them and its backward fills no zeros.
    """
    own = [spans[-1] for spans in row_spans]
    parts = tensor.split([stop - start for start, stop in own], dim=2)
    return {start: part for (start, _), part in zip(own, parts, strict=True)}


def _row(own: dict[int, Tensor], spans: list[Span]) -> Tensor:
    """All tokens of a row. What it shares is the beginning of what is another row's own."""
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
    """Causal attention of all tokens of a row, without a mask where it needs none: the fast kernels
    of a GPU take none, and leave out what stands above the diagonal.
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
    """Causal attention of the last tokens of a row, a few at a time and each piece to what stands
    before its end.
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
    """What is added to the scores of a piece with `before` tokens before it; None where the kernel
    knows by itself.
    """
    if before == 0 and (window is None or queries <= window):
        return None
    room = -(-before // MASK_ROOM) * MASK_ROOM
    return _widest_mask(room, window, dtype)[:queries, room - before : room + queries]


@lru_cache(maxsize=4)
def _widest_mask(
    before: int, window: int | None, dtype: torch.dtype
) -> Float[Tensor, "queries seq"]:
    """Its last columns are the mask of every piece with fewer tokens, or fewer before it."""
    seen = torch.ones(PIECE, before + PIECE, dtype=torch.bool, device="cpu").tril(before)
    if window is not None:
        seen = seen.triu(before - window + 1)
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -torch.inf)


def window_mask(query: Tensor, window: int | None) -> Bool[Tensor, "seq seq"] | None:
    """Which of the last `window` tokens each token sees; None where that is all before it."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return ones.tril() & ~ones.tril(-window)
