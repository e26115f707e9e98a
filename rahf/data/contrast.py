"""Contrasting views of one response: from tokenised pairs to the batch that the alignment reads.

A response occurs in up to three blocks of rows. `reference` is the prompt as it is. `positive` and
`negative` hold the same response ids after a prompt that carries an instruction. They are omitted
where the views differ only in their adapter (DUAL). Retained texts follow the responses in the
`reference` block. Knows no model and no loss.

A batch of two responses (ids 8 9 and 7), each with a one-token prompt, and one retained text each,
`positions: response`:

    reference.input_ids       5 8 9        attention_mask  1 1 1      response_mask  0 1 1
                              6 7 0                        1 1 0                     0 1 0
                              3 4 0                        1 1 0                     1 1 0
                              3 2 1                        1 1 1                     1 1 1
    reference.aligned         1 2 4 6 7 9 10 11     indices into the flattened block
    reference.aligned_owner   0 0 1 2 2 3 3  3      the row each of them belongs to
    aligned_responses         3                     aligned tokens of responses
    aligned_item              0 0 1 0 0 1 1  1      the item each of them belongs to
    first_aligned             0 2                   where each response begins among the aligned
    retained_texts            2                     rows of retained texts, at most one per item
    kinds.chosen              1 1 0 0               rows of this kind, of all in `reference`
    reference.scored          0 1 1, 0 1 0, ...     tokens whose prediction a term of the loss reads
    reference.columns         0 1                   columns whose logits predict them

With `packed` the rows follow one another in a single one, without padding and without an
attention mask; `spans` separates them, and where rows begin alike they share that beginning:

    reference.input_ids       5 8 9 6 7 3 4 3 2 1   position_ids    0 1 2 0 1 0 1 0 1 2
    reference.spans           [[(0, 3)], [(3, 5)], [(5, 7)], [(7, 10)]]
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from rahf.data.rows import (
    Pairs,
    Rows,
    first_rows,
    packed_rows,
    sequence_rows,
    with_aligned,
    with_context,
    with_scored,
)

ResponseSource = Literal["chosen", "rejected", "both", "random"]
Positions = Literal["response", "response_and_tail"]
RowKind = Literal["responses", "chosen", "rejected", "retained"]
Batch = dict[str, Any]


class Responses(torch.utils.data.Dataset):
    """One item per response to align, drawn from rows of tokenised pairs.

    `random` draws one side of each pair in every epoch, from (seed, epoch, row) only, so that a
    resumed run reads what the uninterrupted one would have read. Item `i` carries retained
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
        # In shared memory: persistent workers hold a copy of the data set from their start.
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
    """Return the name of a retained text among the items of batches."""
    return f"retained/{text}"


class PairsTogether(torch.utils.data.Sampler):
    """Both responses of a pair one after the other, the pairs in a new order every epoch.

    The order follows from (seed, epoch) only, as `Responses` does.
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


def aligned_mask(rows: Rows, positions: Positions, tail_tokens: int) -> Tensor:
    """Return which states are aligned, [rows, seq] bool.

    `response` is the response tokens (published); `response_and_tail` the response and the last
    `tail_tokens` of the prompt before it.
    """
    mask = rows["response_mask"]
    if positions == "response":
        return mask
    tail = torch.stack([earlier(rows, back) for back in range(tail_tokens + 1)]).any(0)
    return tail & rows["attention_mask"].bool() if "attention_mask" in rows else tail


def earlier(rows: Rows, columns: int) -> Tensor:
    """Move the response mask left by some columns within each row; False enters on the right."""
    mask, owner = (
        nn.functional.pad(rows[name][:, columns:], (0, columns), value=outside)
        for name, outside in (("response_mask", False), ("owner", -1))
    )
    return mask & (owner == rows["owner"])


@dataclass(frozen=True)
class ContrastCollator:
    """Turns items of `Responses` into one batch; see the module docstring for its tensors."""

    pad_token_id: int
    positions: Positions = "response"
    tail_tokens: int = 2
    max_response_tokens: int | None = None
    padding_side: Literal["right", "left"] = "right"
    width: int = 0
    packed: bool = False
    scored: tuple[RowKind, ...] = ()  # rows of `reference` whose predictions are read

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        responses = [item["response_ids"][: self.max_response_tokens] for item in items]
        retained = [item["retain_ids"] for item in items if "retain_ids" in item]
        kinds = kinds_of_rows(items, len(retained))
        read = sum((kinds[kind] for kind in self.scored), torch.zeros(len(items) + len(retained)))
        # A term that reads predictions reads complete responses; the first tokens are aligned.
        said = [
            item["response_ids"] if whole else response
            for item, response, whole in zip(items, responses, read.bool().tolist(), strict=False)
        ]
        prompts = [item["prompt_ids"] for item in items] + [[] for _ in retained]
        reference = self._rows(prompts, said + retained)
        aligned = self._first_aligned(reference, prompts)
        # A retained text has no prompt: all of it is kept, whatever is aligned in a response.
        of_responses = reference["owner"] < len(items)
        aligned = torch.where(of_responses, aligned, reference["response_mask"])
        reference = with_aligned(reference, aligned)
        if self.scored:
            scored = with_context(reference) & read.bool()[reference["owner"]]
            reference = with_scored(reference, scored)
        names = [item[name] for name in ("name", "retain_name") for item in items if name in item]
        owner, rows = reference["aligned_owner"], torch.arange(len(items))
        batch: Batch = {
            # The Trainer takes the size of a batch from the first tensor that it finds.
            "row": torch.tensor([item["row"] for item in items]),
            "items": names,
            "kinds": kinds,
            "reference": reference,
            "aligned_responses": int((aligned & of_responses).sum()),
            "aligned_item": owner % len(items),
            "first_aligned": torch.searchsorted(owner, rows),
            "retained_texts": len(retained),
        }
        for view in ("positive", "negative"):
            if f"{view}_prompt_ids" in items[0]:
                batch[view] = self._view(view, items, responses)
        return batch

    def _first_aligned(self, rows: Rows, prompts: list[list[int]]) -> Tensor:
        """Return which states are aligned: of the first `max_response_tokens` of each response."""
        if self.max_response_tokens is not None:
            ends = torch.tensor([len(prompt) for prompt in prompts]) + self.max_response_tokens
            first = rows["response_mask"] & (rows["position_ids"] < ends[rows["owner"]])
            rows = rows | {"response_mask": first}
        return aligned_mask(rows, self.positions, self.tail_tokens)

    def retained_rows(self, texts: Sequence[list[int]]) -> Rows:
        """Return a block of retained texts only, as they follow responses in `reference`."""
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


def kinds_of_rows(
    items: Sequence[Mapping[str, Any]], retained: int
) -> dict[RowKind, Bool[Tensor, " rows"]]:
    """Return which rows of `reference` are of each kind: responses, then `retained` texts."""
    chosen = torch.tensor([item["chosen"] for item in items] + [False] * retained)
    responses = torch.arange(len(chosen)) < len(items)
    return {
        "responses": responses,
        "chosen": chosen,
        "rejected": responses & ~chosen,
        "retained": ~responses,
    }


def without_retained(batch: Batch) -> Batch:
    """Return the batch without the retained texts, which follow the responses in `reference`."""
    rows, aligned = batch["reference"], batch["aligned_responses"]
    cut = {name: rows[name][:aligned] for name in ("aligned", "aligned_owner")}
    return batch | {"reference": first_rows(rows, len(batch["row"])) | cut}
