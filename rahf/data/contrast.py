"""Contrasting views of one response: from tokenised pairs to the batch that the alignment reads.

A response stands in up to three blocks of rows. `reference` is the prompt as it is; `positive` and
`negative` say the very same response ids after a prompt that carries an instruction, and are left
out where the views differ in their adapter alone (DUAL). Retained texts follow the responses in the
`reference` block. Knows no model and no loss.

A batch of two responses (ids 8 9 and 7), each with a one-token prompt, and one retained text each,
`positions: response`:

    reference.input_ids       5 8 9        attention_mask  1 1 1      response_mask  0 1 1
                              6 7 0                        1 1 0                     0 1 0
                              3 4 0                        1 1 0                     1 1 0
                              3 2 1                        1 1 1                     1 1 1
    reference.aligned         1 2 4 6 7 9 10 11     indices into the flattened block
    reference.aligned_owner   0 0 1 2 2 3 3  3      the row each of them belongs to

With `packed` the rows stand one after the other in a single one, without padding and without an
attention mask; `spans` tells them apart, and where rows begin alike they share that beginning:

    reference.input_ids       5 8 9 6 7 3 4 3 2 1   position_ids    0 1 2 0 1 0 1 0 1 2
    reference.spans           [[(0, 3)], [(3, 5)], [(5, 7)], [(7, 10)]]
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

ResponseSource = Literal["chosen", "rejected", "both", "random"]
Positions = Literal["response", "response_and_tail"]
Batch = dict[str, Any]
Rows = dict[str, Any]  # a block of rows: tensors; where it is packed, the list `spans`
Span = tuple[int, int]
LEAST_SHARED = 16
"""Tokens; for fewer, putting them together in each attention costs more than it saves."""

TOKENWISE = ("input_ids", "attention_mask", "position_ids", "response_mask", "owner")
Pairs = Dataset | Sequence[Mapping[str, Any]]


class Responses(torch.utils.data.Dataset):
    """One item per response to align, drawn from rows of tokenised pairs.

    `random` takes one side of each pair, drawn anew every epoch from (seed, epoch, row) alone, so
    that a resumed run sees what the uninterrupted one would have seen. Item `i` carries retained
    text `i mod len(retain)`.
    """

    def __init__(
        self,
        pairs: Pairs,
        source: ResponseSource = "both",
        retain: Sequence[list[int]] = (),
        seed: int = 0,
    ):
        self._pairs = pairs
        self._source = source
        self._retain = retain
        self._seed = seed
        # In shared memory: workers that live on hold a copy of the data set from their start.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._pairs) * (2 if self._source == "both" else 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self._pairs[index // 2 if self._source == "both" else index]
        side = self._side(index, pair["row"])
        item = {key: ids for key, ids in pair.items() if key.endswith("prompt_ids")}
        item |= {
            "response_ids": pair[f"{side}_ids"],
            "chosen": side == "chosen",
            "row": pair["row"],
            "name": f"{index // 1000}/{index}-{side}",
        }
        if self._retain:
            text = index % len(self._retain)
            item |= {"retain_ids": self._retain[text], "retain_name": retained_name(text)}
        return item

    def _side(self, index: int, row: int) -> str:
        if self._source == "both":
            return ("chosen", "rejected")[index % 2]
        if self._source == "random":
            digest = hashlib.blake2b(
                f"{self._seed}:{int(self._epoch)}:{row}".encode(), digest_size=1
            ).digest()
            return ("chosen", "rejected")[digest[0] % 2]
        return self._source


def retained_name(text: int) -> str:
    """Name of a retained text among the items of batches."""
    return f"retained/{text}"


class PairsTogether(torch.utils.data.Sampler):
    """Both responses of a pair one after the other, the pairs in a new order every epoch.

    The order follows from (seed, epoch) alone, as `Responses` does.
    """

    def __init__(self, pairs: int, seed: int):
        self._pairs = pairs
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return 2 * self._pairs

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self._seed, self._epoch))
        for pair in generator.permutation(self._pairs).tolist():
            yield from (2 * pair, 2 * pair + 1)


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
    prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_token_id: int, packed: bool
) -> Rows:
    """One block of rows, packed or padded on the right."""
    if packed:
        return packed_rows(prompts, responses)
    return sequence_rows(prompts, responses, pad_token_id)


def packed_rows(
    prompts: Sequence[list[int]], responses: Sequence[list[int]], own_tail: int = 1
) -> Rows:
    """Prompt + response rows one after the other: what `sequence_rows` returns, all [1, tokens],
    less the attention mask, since nothing is padding.

    The beginning of a prompt that an earlier row has as well stands there alone: both responses of
    a pair, and all rows under one instruction, share it. `spans` says of each row where its tokens
    stand; the last span is its own.

    Args:
        own_tail: prompt tokens, from its end, that are never shared, because states or predictions
            are read at them.
    """
    spans: list[list[Span]] = []
    tokens: dict[str, list] = {"input_ids": [], "position_ids": [], "owner": []}
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        shared = _shared_spans(prompt[: max(0, len(prompt) - own_tail)], prompts[:row], spans)
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
    """Where the longest beginning of `wanted` that an earlier prompt has stands; empty if short."""
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
    """Number of rows of a block, packed or padded."""
    return len(rows["spans"] if "spans" in rows else rows["input_ids"])


def packed_tokens_until(rows: Rows, columns: Tensor) -> int | None:
    """Tokens of a packed block up to the end of the row of the last of `columns`, which ascend;
    at least those of the first row. None where the block is padded.
    """
    if "spans" not in rows:
        return None
    last = int(columns[-1]) if len(columns) else 0
    return next(spans[-1][1] for spans in rows["spans"] if spans[-1][1] > last)


def first_rows(rows: Rows, count: int) -> Rows:
    """The first rows of a block, at least one, without `aligned` and `aligned_owner`."""
    names = [name for name in TOKENWISE if name in rows]
    if "spans" not in rows:
        return {name: rows[name][:count] for name in names}
    spans = rows["spans"][:count]
    tokens = spans[-1][-1][1]
    return {name: rows[name][:, :tokens] for name in names} | {"spans": spans}


def aligned_mask(rows: Rows, positions: Positions, tail_tokens: int) -> Tensor:
    """Which states are aligned, [rows, seq] bool.

    `response` is the response tokens (published); `response_and_tail` the response and the last
    `tail_tokens` of the prompt before it.
    """
    mask = rows["response_mask"]
    if positions == "response":
        return mask
    tail = torch.stack([earlier(rows, back) for back in range(tail_tokens + 1)]).any(0)
    return tail & rows["attention_mask"].bool() if "attention_mask" in rows else tail


def earlier(rows: Rows, columns: int) -> Tensor:
    """The response mask moved left by some columns within each row, False entering on the right."""
    mask, owner = (
        nn.functional.pad(rows[name][:, columns:], (0, columns), value=outside)
        for name, outside in (("response_mask", False), ("owner", -1))
    )
    return mask & (owner == rows["owner"])


@dataclass(frozen=True)
class ContrastCollator:
    """Items of `Responses` to one batch; see the module docstring for its tensors."""

    pad_token_id: int
    positions: Positions = "response"
    tail_tokens: int = 2
    max_response_tokens: int | None = None
    padding_side: Literal["right", "left"] = "right"
    width: int = 0
    packed: bool = False

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        responses = [item["response_ids"][: self.max_response_tokens] for item in items]
        retained = [item["retain_ids"] for item in items if "retain_ids" in item]
        reference = self._rows(
            [item["prompt_ids"] for item in items] + [[] for _ in retained], responses + retained
        )
        aligned = aligned_mask(reference, self.positions, self.tail_tokens)
        # A retained text has no prompt: all of it is kept, whatever is aligned in a response.
        of_responses = reference["owner"] < len(items)
        aligned = torch.where(of_responses, aligned, reference["response_mask"])
        # The Trainer takes the size of a batch from the first tensor that it finds.
        batch: Batch = {"row": torch.tensor([item["row"] for item in items])}
        batch["chosen"] = torch.tensor([item["chosen"] for item in items])
        batch["items"] = [
            item[name] for name in ("name", "retain_name") for item in items if name in item
        ]
        batch["reference"] = with_aligned(reference, aligned)
        batch["aligned_responses"] = int((aligned & of_responses).sum())
        for view in ("positive", "negative"):
            if f"{view}_prompt_ids" in items[0]:
                batch[view] = self._view(view, items, responses)
        return batch

    def retained_rows(self, texts: Sequence[list[int]]) -> Rows:
        """A block of retained texts alone, as they stand behind responses in `reference`."""
        rows = self._rows([[] for _ in texts], list(texts))
        return with_aligned(rows, rows["response_mask"])

    def _view(
        self, view: str, items: Sequence[Mapping[str, Any]], responses: list[list[int]]
    ) -> Batch:
        prompts = [item[f"{view}_prompt_ids"] for item in items]
        if self.positions == "response_and_tail":
            self._check_tails(view, items, prompts)
        rows = self._rows(prompts, responses)
        return with_aligned(rows, aligned_mask(rows, self.positions, self.tail_tokens))

    def _rows(self, prompts: list[list[int]], responses: list[list[int]]) -> Rows:
        if self.packed:
            tail = self.tail_tokens if self.positions == "response_and_tail" else 1
            return packed_rows(prompts, responses, tail)
        return sequence_rows(prompts, responses, self.pad_token_id, self.padding_side, self.width)

    def _check_tails(
        self, view: str, items: Sequence[Mapping[str, Any]], prompts: list[list[int]]
    ) -> None:
        tail = self.tail_tokens
        for item, prompt in zip(items, prompts, strict=True):
            if len(prompt) < tail or prompt[-tail:] != item["prompt_ids"][-tail:]:
                raise ValueError(
                    f"row {item['row']}: the last {tail} prompt tokens of the {view} view are "
                    f"{prompt[-tail:]}, those of the reference {item['prompt_ids'][-tail:]}; "
                    "positions='response_and_tail' needs the same tokens in every view. "
                    "Lower tail_tokens or use positions='response'."
                )


def with_aligned(rows: Rows, mask: Tensor) -> Rows:
    """Add the aligned tokens as flat indices and their rows, found off the accelerator."""
    aligned = mask.flatten().nonzero().squeeze(1)
    return rows | {"aligned": aligned, "aligned_owner": rows["owner"].flatten()[aligned]}
