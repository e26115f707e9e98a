"""The losses of trainings, pair by pair: what influence is computed of.

The mean of `losses` over all pairs is the loss that the training minimised. `pseudo` is a sum of
pseudo-losses, whose gradients' second moment is the Gauss-Newton matrix: in expectation where
labels or noise are drawn, exactly for DPO. What is drawn for a pair depends on the pair only.

DPO, SFT and contrastive instruction tuning are here, an alignment's terms in `aligned`. The losses
themselves are those of the trainers. Knows models and tokenised pairs.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor

from rahf.data.rows import Rows, Span, with_context
from rahf.models.adapters import frozen_pass
from rahf.models.likelihood import Likelihood, likelihood, predictions, token_likelihood
from rahf.models.packing import takes_packed_rows
from rahf.objective import dpo_loss
from rahf.report.progress import timed
from rahf.training.teachers import (
    InstructionCollator,
    PairCollator,
    SideCollator,
    contrastive_loss,
)

SIDES = ("chosen", "rejected")


class Batch(NamedTuple):
    """Some pairs, and what the rows of their forward pass are."""

    inputs: dict[str, Any]  # what the loss reads
    names: list[str]  # of the pairs
    example: Int[Tensor, " rows"]  # place of the row's pair in the batch; of a retained text, after
    side: Int[Tensor, " rows"]  # index in SIDES; that of a retained text has no meaning
    tokens: Int[Tensor, "lines seq"]  # ids; a row is a line, unless rows are packed
    mask: Bool[Tensor, "lines seq"]  # real tokens
    spans: list[Span] | None  # of packed rows, the places of each one's own tokens in the one line


Gate = Callable[[Tensor, Tensor], Tensor]
"""Function of values [..., tokens, d] that a loss reads, and their places in the flattened rows."""


def open_gate(values: Tensor, _: Tensor) -> Tensor:
    """Return the values as they are."""
    return values


class Read(NamedTuple):
    """What a pass over some pairs finds."""

    losses: Float[Tensor, " pairs"]
    # Log-probabilities of both responses where the loss reads them, in nats.
    own: Float[Tensor, "pairs 2"] | None = None
    base: Float[Tensor, "pairs 2"] | None = None  # under the base


@dataclass(frozen=True)
class Objective:
    """A training's loss on its pairs."""

    model: PeftModel  # the trained adapter is active
    rows: Dataset  # the tokenised pairs that were trained on
    sides: tuple[str, ...]  # that the loss reads
    # Places of pairs; with retained texts or not; packed, so many rows sharing a prompt, or 0.
    collate: Callable[[Sequence[int], bool, int], Batch]
    read: Callable[[Batch, Gate], Read]
    pseudo: Callable[[Batch], Tensor]
    packs: bool = False  # whether `collate` can pack
    compares: bool = False  # whether `read` finds the log-probabilities
    bf16: bool = False  # whether quick passes multiply in bfloat16

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def losses(self, batch: Batch, gate: Gate = open_gate) -> Float[Tensor, " pairs"]:
        """Return the loss of each pair."""
        return self.read(batch, gate).losses

    def by_length(self, places: Sequence[int], size: int) -> list[list[int]]:
        """Return the places of pairs, `size` at once, those of like length together."""
        some = self.rows.select(places)
        columns = [map(len, some[f"{name}_ids"][:]) for name in ("prompt", *SIDES)]
        lengths = [prompt + max(both) for prompt, *both in zip(*columns, strict=True)]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        batches = in_batches(len(order), size)
        return [[places[index] for index in order[each.start : each.stop]] for each in batches]

    def quick_batch(self, places: Sequence[int], *, whole: bool, shared: bool = True) -> Batch:
        """Return what `batch` does, packed where the model takes packed rows.

        The gradients of pairs are the same.

        Args:
            shared: the responses of a pair share their prompt, whose tokens are there once, so that
                what they move cannot be told by side, nor squared token by token.
        """
        packed = self.packs and takes_packed_rows(self.model)
        together = len(SIDES) if shared else 1
        return send_to_device(self.collate(places, whole, together * packed), self.device)

    def quick(self) -> AbstractContextManager[Any]:
        """Return the context of a quick pass: with `bf16`, products of matrices in bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def batches(self, size: int, *, whole: bool) -> Iterator[Batch]:
        """Yield all pairs in order, `size` at once; `whole`: see `batch`."""
        for places in timed(in_batches(len(self.rows), size), "pairs"):
            yield self.batch(places, whole=whole)

    def own_batches(self, size: int) -> Iterator[Batch]:
        """Yield the batches of this rank, with retained texts."""
        state = PartialState()
        mine = in_batches(len(self.rows), size)[state.process_index :: state.num_processes]
        for places in mine:
            yield self.batch(places, whole=True)

    def batch(self, places: Sequence[int], *, whole: bool) -> Batch:
        """Return the pairs in some places.

        Args:
            whole: with the texts of a retain term, which belong to no pair.
        """
        return send_to_device(self.collate(places, whole, 0), self.device)


def in_batches(count: int, size: int) -> list[range]:
    """Return the places of `count` items in order, `size` at once."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def pair_names(rows: Dataset, places: Sequence[int]) -> list[str]:
    return [f"pair {rows[place]['row']}" for place in places]


def real_tokens(rows: Rows) -> Bool[Tensor, "rows seq"]:
    return rows["attention_mask"].bool()


def batch_of(inputs: dict[str, Any], rows: Rows, names: list[str], *of_rows: Tensor) -> Batch:
    """Return a batch; `of_rows`: example and side of each row."""
    if "spans" in rows:
        mask = torch.ones_like(rows["input_ids"], dtype=torch.bool)
        own = [spans[-1] for spans in rows["spans"]]
        return Batch(inputs, names, *of_rows, rows["input_ids"], mask, own)
    return Batch(inputs, names, *of_rows, rows["input_ids"], real_tokens(rows), None)


def drawn(keys: Sequence[str], counts: Sequence[int], *, normal: int = 0) -> Tensor:
    """Draw `counts[i]` uniform numbers for each key, or normal vectors of length `normal`."""
    parts = []
    for key, count in zip(keys, counts, strict=True):
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest())
        generator = torch.Generator().manual_seed(seed)
        if normal:
            parts.append(torch.randn(count, normal, generator=generator))
        else:
            parts.append(torch.rand(count, generator=generator))
    return torch.cat(parts)


def signs(keys: Sequence[str]) -> Float[Tensor, " keys"]:
    return torch.where(drawn(keys, [1] * len(keys)) < 0.5, -1.0, 1.0)


def sampled_cross_entropy(
    logits: Float[Tensor, "tokens vocab"], uniform: Float[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Return the cross entropy of labels drawn from the predictions themselves: the second moment
    of its gradient is the Fisher matrix, which is the Gauss-Newton matrix of the cross entropy.
    """
    logprobs = logits.log_softmax(-1)
    places = logprobs.detach().double().exp().cumsum(-1)
    wanted = (uniform.to(places) * places[:, -1]).unsqueeze(1)
    labels = torch.searchsorted(places, wanted).clamp(max=logits.shape[1] - 1)
    return -logprobs.gather(1, labels).squeeze(1)


def gated_likelihood(model: PeftModel, rows: Rows, gate: Gate) -> Likelihood:
    """Score the tokens under `response_mask`; the gate is at the logits, at the tokens' places."""
    rows = rows | {"response_mask": with_context(rows)}
    places = rows["response_mask"].flatten().nonzero().squeeze(1)
    return token_likelihood(gate(predictions(model, rows), places), rows)


def keys_of(batch: Batch, what: str) -> list[str]:
    """Return a key for each row of pairs, for `drawn`."""
    pairs = zip(batch.example.tolist(), batch.side.tolist(), strict=True)
    return [f"{what} {batch.names[example]} {side}" for example, side in pairs]


# DPO


def preference_objective(model: PeftModel, rows: Dataset, pad: int, beta: float) -> Objective:
    """Return direct preference optimisation from the base (arXiv 2305.18290, equation 7)."""

    def collate(places: Sequence[int], _: bool, packed: int) -> Batch:
        pairs = [rows[place] for place in places]
        inputs = PairCollator(pad, packed > 0, packed or None)(pairs)
        # No gradient goes through the base, so that all of its rows may share a beginning.
        inputs["base"] = PairCollator(pad, packed=True)(pairs)["rows"] if packed else inputs["rows"]
        example, side = torch.arange(2 * len(places)) // 2, torch.arange(2 * len(places)) % 2
        return batch_of(inputs, inputs["rows"], pair_names(rows, places), example, side)

    known: dict[str, Tensor] = {}  # log-probabilities under the base, by pair: read in every pass

    def responses(batch: Batch, gate: Gate) -> tuple[Tensor, Tensor]:
        if not known.keys() >= set(batch.names):
            with frozen_pass(model, None):
                sums = likelihood(model, batch.inputs["base"]).sums()
            known.update(zip(batch.names, sums.view(-1, 2), strict=True))
        base = torch.cat([known[name] for name in batch.names])
        return gated_likelihood(model, batch.inputs["rows"], gate).sums(), base

    def read(batch: Batch, gate: Gate) -> Read:
        own, base = responses(batch, gate)
        return Read(dpo_loss(own, base, beta), own.detach().view(-1, 2), base.view(-1, 2))

    def pseudo(batch: Batch) -> Tensor:
        own, base = responses(batch, open_gate)
        return logistic_pseudo(beta * (own - base).view(-1, 2).diff(dim=1)).sum()

    return Objective(model, rows, SIDES, collate, read, pseudo, packs=True, compares=True)


def logistic_pseudo(margin: Tensor) -> Tensor:
    """Return the pseudo-loss of -log sigmoid(margin), whose second derivative is s (1 - s)."""
    share = margin.detach().sigmoid()
    return (share * (1 - share)).sqrt() * margin


# SFT


def side_objective(model: PeftModel, rows: Dataset, pad: int, side: str) -> Objective:
    """Return supervised fine-tuning on one side: the mean over all response tokens."""
    index = SIDES.index(side)
    tokens = sum(
        len(ids) - (not prompt)
        for ids, prompt in zip(rows[f"{side}_ids"][:], rows["prompt_ids"][:], strict=True)
    )
    weight = len(rows) / tokens  # of a token in the loss of its pair

    def collate(places: Sequence[int], _: bool, packed: int) -> Batch:
        inputs = SideCollator(pad, side, packed > 0, 1)([rows[place] for place in places])
        example = torch.arange(len(places))
        sides = torch.full_like(example, index)
        return batch_of(inputs, inputs["rows"], pair_names(rows, places), example, sides)

    def read(batch: Batch, gate: Gate) -> Read:
        return Read(-weight * gated_likelihood(model, batch.inputs["rows"], gate).sums())

    def pseudo(batch: Batch) -> Tensor:
        block = batch.inputs["rows"]
        scored = with_context(block)
        logits = predictions(model, block | {"response_mask": scored})
        counts = torch.bincount(block["owner"][scored], minlength=len(batch.example))
        uniform = drawn(keys_of(batch, "label"), counts.tolist())
        return weight**0.5 * sampled_cross_entropy(logits, uniform).sum()

    return Objective(model, rows, (side,), collate, read, pseudo, packs=True)


# Contrastive instruction tuning


def instruction_objective(model: PeftModel, rows: Dataset, pad: int, smoothing: float) -> Objective:
    """Return contrastive instruction tuning: the mean over both responses of all pairs."""
    collator = InstructionCollator(pad)

    def collate(places: Sequence[int], _: bool, __: int) -> Batch:
        inputs = collator([rows[place] for place in places])
        of_rows = torch.arange(2 * len(places)).repeat(
            2
        )  # under the fitting instruction, the other
        names, example, side = pair_names(rows, places), of_rows // 2, of_rows % 2
        return batch_of(inputs, inputs["rows"], names, example, side)

    def read(batch: Batch, gate: Gate) -> Read:
        match, other = gated_likelihood(model, batch.inputs["rows"], gate).means().chunk(2)
        return Read(contrastive_loss(match, other, smoothing).view(-1, 2).mean(1))

    return Objective(model, rows, SIDES, collate, read, partial(_instruction_pseudo, model=model))


def _instruction_pseudo(batch: Batch, model: PeftModel) -> Tensor:
    rows = batch.inputs["rows"]
    rows = rows | {"response_mask": with_context(rows)}
    counts, half = rows["response_mask"].sum(1), len(batch.example) // 2
    logits, keys = predictions(model, rows), keys_of(batch, "label")
    matching = int(counts[:half].sum())
    uniform = drawn(keys[:half], counts[:half].tolist())
    tokens = sampled_cross_entropy(logits[:matching], uniform)
    owner = torch.arange(half, device=tokens.device).repeat_interleave(counts[:half])
    entropy = (tokens / counts[:half].clamp(min=1)[owner].sqrt()).sum()
    match, other = token_likelihood(logits, rows).means().chunk(2)
    separation = logistic_pseudo(match - other) * signs(keys_of(batch, "sign")[:half]).to(match)
    return 0.5**0.5 * (entropy + separation.sum())
