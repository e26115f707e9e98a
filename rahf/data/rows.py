"""Blocks of rows of ids, padded or packed: what a forward pass reads, and what is read from it.

A row is a prompt and a response. Padded rows are [rows, seq]; packed rows follow one another
in a single line. Knows ids and masks; knows no view, no model and no loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from datasets import Dataset
from jaxtyping import Bool
from torch import Tensor

Pairs = Dataset | Sequence[Mapping[str, Any]]  # tokenised
Rows = dict[str, Any]  # a block of rows: tensors; where it is packed, the list `spans`
Span = tuple[int, int]
LEAST_SHARED = 16
"""Tokens; sharing fewer costs more in each attention than it saves."""

TOKENWISE = ("input_ids", "attention_mask", "position_ids", "response_mask", "owner", "scored")


def sequence_rows(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    pad_token_id: int,
    padding_side: Literal["right", "left"] = "right",
    width: int = 0,
) -> Rows:
    """Pad prompt + response rows to the longest (at least `width`).

    Returns:
        `input_ids`, `attention_mask`, `position_ids` (restarting at the first real token),
        `response_mask` and `owner` (the row of each token), all [rows, seq].
        Padding is known by the mask, never by its id, which may be the end-of-text id.
    """
    lengths = [
        len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)
    ]
    shape = (len(prompts), max([width, *lengths]))
    input_ids = torch.full(shape, pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    response_mask = torch.zeros(shape, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start = 0 if padding_side == "right" else shape[1] - lengths[row]
        stop = start + lengths[row]
        input_ids[row, start:stop] = torch.tensor(prompt + response)
        attention_mask[row, start:stop] = 1
        response_mask[row, start + len(prompt) : stop] = True
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0),
        "response_mask": response_mask,
        "owner": torch.arange(shape[0]).unsqueeze(1).expand(shape),
    }


def rows_of_ids(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    pad_token_id: int,
    packed: bool,
    together: int | None = None,
) -> Rows:
    """Return one block of rows, packed or padded on the right; `together`: see `packed_rows`."""
    if packed:
        return packed_rows(prompts, responses, together=together)
    return sequence_rows(prompts, responses, pad_token_id)


def packed_rows(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    own_tail: int = 1,
    together: int | None = None,
) -> Rows:
    """Put prompt + response rows one after the other, all [1, tokens].

    Returns what `sequence_rows` returns, less the attention mask, since nothing is padding. The
    beginning of a prompt that an earlier row has as well is stored only there. Both responses of a
    pair, and all rows under one instruction, share it. `spans` are the places of each row's tokens;
    the last span is its own.

    Args:
        own_tail: prompt tokens, from its end, that are never shared, because states or predictions
            are read at them.
        together: consecutive rows that may share a beginning, as the two of a pair; None: all.
    """
    spans: list[list[Span]] = []
    tokens: dict[str, list] = {"input_ids": [], "position_ids": [], "owner": []}
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        first = 0 if together is None else row - row % together
        sharable = prompt[: max(0, len(prompt) - own_tail)]
        shared = _shared_spans(sharable, prompts[first:row], spans[first:])
        begin = sum(stop - start for start, stop in shared)
        own, place = [*prompt, *response][begin:], len(tokens["owner"])
        spans.append([*shared, (place, place + len(own))])
        tokens["input_ids"] += own
        tokens["position_ids"] += range(begin, begin + len(own))
        tokens["owner"] += [row] * len(own)
    rows = {name: torch.tensor([values], dtype=torch.long) for name, values in tokens.items()}
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts])
    rows["response_mask"] = rows["position_ids"] >= prompt_lengths[rows["owner"]]
    return rows | {"spans": spans}


def _shared_spans(
    wanted: list[int], earlier: Sequence[list[int]], spans: Sequence[list[Span]]
) -> list[Span]:
    """Find the longest beginning of `wanted` that an earlier prompt has; empty if it is short."""
    longest, source = 0, 0
    for row, prompt in enumerate(earlier):
        same = next(
            (i for i, (x, y) in enumerate(zip(wanted, prompt, strict=False)) if x != y),
            min(len(wanted), len(prompt)),
        )
        if same > longest:
            longest, source = same, row
    if longest < LEAST_SHARED:
        return []
    found = []
    for start, stop in spans[source]:
        found.append((start, min(stop, start + longest)))
        longest -= found[-1][1] - start
        if longest == 0:
            break
    return found


def row_count(rows: Rows) -> int:
    """Return the number of rows of a block, packed or padded."""
    return len(rows["spans"] if "spans" in rows else rows["input_ids"])


def with_aligned(rows: Rows, mask: Bool[Tensor, "lines seq"]) -> Rows:
    """Add the aligned tokens as flat indices (`aligned`) and their rows (`aligned_owner`)."""
    aligned = mask.flatten().nonzero().squeeze(1)
    return rows | {"aligned": aligned, "aligned_owner": rows["owner"].flatten()[aligned]}


def with_context(rows: Rows) -> Bool[Tensor, "lines seq"]:
    """Return the response tokens that follow another token.

    The first token of a text without a prompt has no prediction.
    """
    return rows["response_mask"] & (rows["position_ids"] > 0)


def predicting_columns(scored: Bool[Tensor, "lines seq"]) -> Tensor:
    """Return the columns that predict a scored token of any line: no other logits are needed."""
    return scored[:, 1:].any(0).nonzero().squeeze(1)


def with_scored(rows: Rows, scored: Bool[Tensor, "lines seq"]) -> Rows:
    """Add the tokens whose predictions are read, and what a forward needs of them.

    Returns:
        `rows` with `scored`, with `columns` (the positions whose logits predict a scored token) and
        with `tokens_above` (tokens of a packed block up to the end of the row of the last scored
        token, at least those of the first row; None where the block is padded).
    """
    columns = predicting_columns(scored)
    tokens = None
    if "spans" in rows:
        last = int(columns[-1]) if len(columns) else 0
        tokens = next(spans[-1][1] for spans in rows["spans"] if spans[-1][1] > last)
    return rows | {"scored": scored, "columns": columns, "tokens_above": tokens}


def first_rows(rows: Rows, count: int) -> Rows:
    """Return the first rows of a block, at least one, without `aligned` and `aligned_owner`."""
    names = [name for name in TOKENWISE if name in rows]
    if "spans" in rows:
        spans = rows["spans"][:count]
        tokens = spans[-1][-1][1]
        cut = {name: rows[name][:, :tokens] for name in names} | {"spans": spans}
    else:
        cut = {name: rows[name][:count] for name in names}
    return with_scored(cut, cut["scored"]) if "scored" in cut else cut
