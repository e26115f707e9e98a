"""Attention over packed rows: rows of one sequence that do not attend to each other.

In most decoders only attention reads other tokens. Rows can then follow one another without
padding, and share their common beginning, whose states depend on no later token.
Attention then runs row by row. A CPU's kernel leaves nothing out above the diagonal of a square of
up to 512 tokens, so that there it runs for a few tokens of a row at a time. Some decoders do more
between tokens, as recurrence and convolution: whether packing is exact is checked on each model.
Knows transformers' attention interface; knows no data and no loss.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from rahf.distributed.sharding import gathered
from rahf.models.own_training import turn_off_router_logits

logger = logging.getLogger(__name__)

PACKED = "rahf_packed_sdpa"
"""Name of the attention in a model's configuration. Without `row_spans` it is `sdpa`."""

PIECE = 128
"""Tokens of a row whose attention runs at once on a CPU."""

MASK_ROOM = 512
"""The masks of pieces are cut out of masks for multiples of so many earlier tokens."""

TOLERANCE, COARSE_TOLERANCE = 1e-2, 0.1
"""Mean relative difference of the logits of packed rows and of rows alone that is rounding: in
float32, and in 16 bits or with quantised weights.
"""

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""Types of layers (`layer_types` of a configuration) that read other tokens by attention only."""

Span = tuple[int, int]


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
    """Run transformers' sdpa attention, row by row where `row_spans` are given.

    They are the places of the tokens of each row; the last span is the row's own. Rows behind the
    end of the tokens are skipped.

    Raises:
        ValueError: the pass is packed (see `packed_inputs`), but a block dropped its `row_spans`.
    """
    if row_spans is None:
        _refuse_packed_pass(module, key, attention_mask)
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


def _refuse_packed_pass(module: nn.Module, key: Tensor, mask: Tensor | None) -> None:
    if mask is not None and mask.shape[-1] == 1 < key.shape[2]:
        raise ValueError(
            f"{type(module).__name__} got no row_spans in a packed pass: the blocks of this model "
            "do not pass on `row_spans`. Set packing: false."
        )


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
