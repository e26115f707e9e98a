"""The losses of trainings, pair by pair: what influence is computed of.

The mean of `losses` over all pairs is the loss that the training minimised. `pseudo` is a sum of
pseudo-losses, whose gradients' second moment is the Gauss-Newton matrix: in expectation where
labels or noise are drawn, exactly for DPO. What is drawn for a pair depends on the pair only.

DPO, SFT and contrastive instruction tuning are here, an alignment's terms in `aligned`. The losses
themselves are those of the trainers. Knows models and tokenised pairs.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
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

from rahf.data.rows import Rows, with_context
from rahf.models.adapters import frozen_pass
from rahf.models.likelihood import Likelihood, likelihood, predictions, token_likelihood
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
    tokens: Int[Tensor, "rows seq"]  # ids
    mask: Bool[Tensor, "rows seq"]  # real tokens


Gate = Callable[[Tensor, Tensor], Tensor]
"""Function of values [..., tokens, d] that a loss reads, and their places in the flattened rows."""


def open_gate(values: Tensor, _: Tensor) -> Tensor:
    """Return the values as they are."""
    return values


@dataclass(frozen=True)
class Objective:
    """A training's loss on its pairs."""

    model: PeftModel  # the trained adapter is active
    rows: Dataset  # the tokenised pairs that were trained on
    sides: tuple[str, ...]  # that the loss reads
    collate: Callable[[Sequence[int], bool], Batch]  # places of pairs, with retained texts or not
    losses: Callable[[Batch, Gate], Float[Tensor, " pairs"]]
    pseudo: Callable[[Batch], Tensor]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

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
        return send_to_device(self.collate(places, whole), self.device)


def in_batches(count: int, size: int) -> list[range]:
    """Return the places of `count` items in order, `size` at once."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def pair_names(rows: Dataset, places: Sequence[int]) -> list[str]:
    return [f"pair {rows[place]['row']}" for place in places]


def real_tokens(rows: Rows) -> Bool[Tensor, "rows seq"]:
    return rows["attention_mask"].bool()


def batch_of(inputs: dict[str, Any], rows: Rows, names: list[str], *of_rows: Tensor) -> Batch:
    """Return a batch; `of_rows`: example and side of each row."""
    return Batch(inputs, names, *of_rows, rows["input_ids"], real_tokens(rows))


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
    collator = PairCollator(pad)

    def collate(places: Sequence[int], _: bool) -> Batch:
        inputs = collator([rows[place] for place in places])
        example, side = torch.arange(2 * len(places)) // 2, torch.arange(2 * len(places)) % 2
        return batch_of(inputs, inputs["rows"], pair_names(rows, places), example, side)

    known: dict[str, Tensor] = {}  # log-probabilities under the base, by pair: read in every pass

    def responses(batch: Batch, gate: Gate) -> tuple[Tensor, Tensor]:
        if not known.keys() >= set(batch.names):
            with frozen_pass(model, None):
                sums = likelihood(model, batch.inputs["rows"]).sums()
            known.update(zip(batch.names, sums.view(-1, 2), strict=True))
        base = torch.cat([known[name] for name in batch.names])
        return gated_likelihood(model, batch.inputs["rows"], gate).sums(), base

    def losses(batch: Batch, gate: Gate = open_gate) -> Tensor:
        return dpo_loss(*responses(batch, gate), beta)

    def pseudo(batch: Batch) -> Tensor:
        own, base = responses(batch, open_gate)
        return logistic_pseudo(beta * (own - base).view(-1, 2).diff(dim=1)).sum()

    return Objective(model, rows, SIDES, collate, losses, pseudo)


def logistic_pseudo(margin: Tensor) -> Tensor:
    """Return the pseudo-loss of -log sigmoid(margin), whose second derivative is s (1 - s)."""
    share = margin.detach().sigmoid()
    return (share * (1 - share)).sqrt() * margin


# SFT


def side_objective(model: PeftModel, rows: Dataset, pad: int, side: str) -> Objective:
    """Return supervised fine-tuning on one side: the mean over all response tokens."""
    collator, index = SideCollator(pad, side), SIDES.index(side)
    tokens = sum(
        len(ids) - (not prompt)
        for ids, prompt in zip(rows[f"{side}_ids"][:], rows["prompt_ids"][:], strict=True)
    )
    weight = len(rows) / tokens  # of a token in the loss of its pair

    def collate(places: Sequence[int], _: bool) -> Batch:
        inputs = collator([rows[place] for place in places])
        example = torch.arange(len(places))
        side = torch.full_like(example, index)
        return batch_of(inputs, inputs["rows"], pair_names(rows, places), example, side)

    def losses(batch: Batch, gate: Gate = open_gate) -> Tensor:
        return -weight * gated_likelihood(model, batch.inputs["rows"], gate).sums()

    def pseudo(batch: Batch) -> Tensor:
        scored = with_context(batch.inputs["rows"])
        logits = predictions(model, batch.inputs["rows"] | {"response_mask": scored})
        uniform = drawn(keys_of(batch, "label"), scored.sum(1).tolist())
        return weight**0.5 * sampled_cross_entropy(logits, uniform).sum()

    return Objective(model, rows, (side,), collate, losses, pseudo)


# Contrastive instruction tuning


def instruction_objective(model: PeftModel, rows: Dataset, pad: int, smoothing: float) -> Objective:
    """Return contrastive instruction tuning: the mean over both responses of all pairs."""
    collator = InstructionCollator(pad)

    def collate(places: Sequence[int], _: bool) -> Batch:
        inputs = collator([rows[place] for place in places])
        of_rows = torch.arange(2 * len(places)).repeat(
            2
        )  # under the fitting instruction, the other
        names, example, side = pair_names(rows, places), of_rows // 2, of_rows % 2
        return batch_of(inputs, inputs["rows"], names, example, side)

    def losses(batch: Batch, gate: Gate = open_gate) -> Tensor:
        match, other = gated_likelihood(model, batch.inputs["rows"], gate).means().chunk(2)
        return contrastive_loss(match, other, smoothing).view(-1, 2).mean(1)

    return Objective(model, rows, SIDES, collate, losses, partial(_instruction_pseudo, model=model))


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
