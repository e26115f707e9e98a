"""Attention of a complete pack in one kernel: torch's FlexAttention under a mask of row spans.

Each token sees the tokens of its own row up to itself, those that the row shares with earlier ones
included. The kernel skips the blocks of the mask that no token sees. It is compiled by Triton when
it is first used, for all lengths at once. Knows spans and tensors; knows no model.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention.flex_attention import BlockMask, flex_attention

Spans = tuple[tuple[tuple[int, int], ...], ...]
"""Places of the tokens of each row, as in a block of packed rows; the last span is its own."""

BLOCK = 128
"""Tokens of a side of the squares that the kernel computes or skips."""

LARGEST_DIFFERENCE, COARSE_LARGEST_DIFFERENCE = 1e-2, 0.1
"""Relative difference of one token's output, or gradient, that is rounding: in float32, and in 16
bits. A token that sees a wrong one differs by far more.
"""


def attention_in_one_kernel(
    query: Float[Tensor, "batch heads seq head"],
    key: Float[Tensor, "batch key_heads seq head"],
    value: Float[Tensor, "batch key_heads seq value"],
    spans: Spans,
    window: int | None = None,
    scaling: float | None = None,
) -> Float[Tensor, "batch seq heads value"]:
    """Run causal attention within the rows of a pack.

    Args:
        window: each token sees so many tokens, itself included; None: all before it.
    """
    device = query.device
    if torch.is_autocast_enabled(device.type):  # torch leaves this function out of its lists
        dtype = torch.get_autocast_dtype(device.type)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    mask = mask_of(spans, window, device)
    attend = _compiled() if device.type == "cuda" else flex_attention
    grouped = query.shape[1] != key.shape[1]
    output = attend(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped)
    return output.transpose(1, 2)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    """Return the kernel for every length.

    Past the limit of its variants it fails, where torch would fall back to all scores in memory.
    """
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


@lru_cache(maxsize=8)
def mask_of(spans: Spans, window: int | None, device: torch.device) -> BlockMask:
    """Return which tokens of a pack each token sees; all layers and passes on a pack share it."""
    some, whole = seen_blocks(spans, window)
    places = [[place for start, stop in row for place in range(start, stop)] for row in spans]
    rows, positions = torch.zeros(2, spans[-1][-1][1], dtype=torch.int32).unbind()
    # A line and a column more than there are rows: torch compiles a size of 1 by itself.
    ends = torch.zeros(len(spans) + 1, len(spans) + 1, dtype=torch.int32)
    for row, (*shared, (start, stop)) in enumerate(spans):
        rows[start:stop] = row
        positions[start:stop] = torch.arange(len(places[row]) - (stop - start), len(places[row]))
        ends[row, row] = stop
        for first, last in shared:
            ends[row, rows[first]] = last
    rows, positions, ends = (tensor.to(device) for tensor in (rows, positions, ends))
    reach = torch.tensor(window or 0, dtype=torch.int32, device=device)

    def within_row(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key < ends[rows[query], rows[key]])

    def within_window(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = positions[query] - positions[key] < reach
        return near & within_row(_batch, _head, query, key)

    made = BlockMask.from_kv_blocks(
        *_listed(some & ~whole),
        *_listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=within_row if window is None else within_window,
        seq_lengths=(len(rows), len(rows)),
    )
    return made.to(device)


def seen_blocks(
    spans: Spans, window: int | None
) -> tuple[Bool[Tensor, "blocks blocks"], Bool[Tensor, "blocks blocks"]]:
    """Return in which squares of the mask a token may see one, and in which all see all.

    The mask itself, which is the square of the tokens, is not made.
    """
    tokens = spans[-1][-1][1]
    starts = torch.arange(0, tokens, BLOCK)
    below = torch.ones(len(starts), len(starts)).tril(-1)
    if window is not None:  # the nearest tokens of two blocks are further apart than the window
        below = below.triu(-((window + BLOCK - 2) // BLOCK))

    def inside(start: int, stop: int) -> Float[Tensor, " blocks"]:
        """Return how many tokens of a span each block has."""
        return ((starts + BLOCK).clamp(max=stop) - starts.clamp(min=start)).clamp(min=0).float()

    pairs = torch.zeros_like(below)
    for *shared, own in spans:
        queries = inside(*own)
        pairs += queries.outer(queries) * below + torch.diag(queries * (queries + 1) / 2)
        for span in shared:
            pairs += queries.outer(inside(*span))
    whole = (pairs == BLOCK**2) if window is None else torch.zeros_like(below, dtype=torch.bool)
    return pairs > 0, whole


def _listed(blocks: Bool[Tensor, "blocks blocks"]) -> tuple[Int[Tensor, "..."], Int[Tensor, "..."]]:
    """Return how many blocks each line has, and which: these first."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1).int()[None, None], order.int()[None, None].contiguous()


def what_differs(
    by_kernel: Callable[..., Tensor], plainly: Callable[..., Tensor], given: Sequence[Tensor]
) -> str | None:
    """Return how outputs and gradients of two ways to attend differ; None where they do not.

    Args:
        given: query, key and value, whose values are those of a real pass.
    """
    # Saved as they are: activation checkpointing around the pass counts what a block saves.
    with torch.enable_grad(), saved_tensors_hooks(_same, _same):
        expected = _with_gradients(plainly, given)
        try:
            found = _with_gradients(by_kernel, given)
        except Exception as error:  # whatever it is, the same tensors have just been attended
            text = str(error).strip().partition("\n")[0]
            return f"it fails ({type(error).__name__}: {text:.200})"
    exact = given[0].dtype == torch.float32 and not torch.is_autocast_enabled(given[0].device.type)
    largest = LARGEST_DIFFERENCE if exact else COARSE_LARGEST_DIFFERENCE
    for name, now, before in zip(("output", "query", "key", "value"), found, expected, strict=True):
        difference = (now.float() - before.float()).norm(dim=-1)
        size = before.float().norm(dim=-1)
        worst = (difference / (size + size.mean())).max().item()
        if not worst <= largest:
            what = name if name == "output" else f"gradient of the {name}"
            return f"its {what} differs from that of single rows (relative difference {worst:.2g})"
    return None


def _with_gradients(attend: Callable[..., Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    parts = [tensor.detach().clone().requires_grad_() for tensor in given]
    output = attend(*parts)
    # A sum of different weights: the gradient of a plain sum says little of queries and keys.
    count = torch.arange(output.numel(), device=output.device, dtype=torch.float32)
    loss = (output.float() * torch.cos(count).view(output.shape)).sum()
    return [output.detach(), *torch.autograd.grad(loss, parts)]


def _same(tensor: Any) -> Any:
    return tensor
