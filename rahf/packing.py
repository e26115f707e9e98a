"""Attention over packed rows: rows of one sequence that see nothing of each other.

Everything in a decoder but attention treats a token by itself, so that rows may stand one after the
other without padding, and share what they begin with: its states depend on nothing behind it.
Attention is then asked row by row, which also leaves out the half of each square above its
diagonal. Knows transformers' attention interface; knows no data and no loss.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PACKED = "rahf_packed_sdpa"
"""Name of the attention in a model's configuration. Without `row_spans` it is `sdpa`."""


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Let `model` take packed rows, if its attention is `sdpa`; says whether it does now."""
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa":
        AttentionInterface.register(PACKED, packed_attention)
        AttentionMaskInterface.register(PACKED, sdpa_mask)
        model.set_attn_implementation(PACKED)
    return config._attn_implementation == PACKED


def packed_inputs(spans: list[list[tuple[int, int]]], device: torch.device) -> dict[str, Any]:
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
    row_spans: list[list[tuple[int, int]]] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch seq heads head"], None]:
    """transformers' sdpa attention, row by row where `row_spans` say where the tokens of each row
    stand; the last of its spans is its own.
    """
    if row_spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    outputs = []
    for spans in row_spans:
        row = [_tokens_at(tensor, spans) for tensor in (query, key, value)]
        mask = window_mask(row[0], sliding_window)
        whole = sdpa_attention_forward(module, *row, mask, **options)[0]
        start, stop = spans[-1]
        outputs.append(whole[:, whole.shape[1] - (stop - start) :])
    return torch.cat(outputs, dim=1), None


def _tokens_at(tensor: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    parts = [tensor[:, :, start:stop] for start, stop in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def window_mask(query: Tensor, window: int | None) -> Bool[Tensor, "seq seq"] | None:
    """Which of the last `window` tokens each token sees; None where that is all before it."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return ones.tril() & ~ones.tril(-window)
