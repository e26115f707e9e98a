"""The loss of an alignment, pair by pair, and its pseudo-losses, term by term.

The loss is that of `alignment.py`. A pseudo-loss follows from the second derivative of a term in
what it reads: of a distance in the hidden states, of KL, SFT and DPO in the logits. Terms that are
not convex there (`relu_cosine`, `away`) enter by their gradients. Response tokens are padded,
not packed. Knows alignments and tokenised pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rahf.alignment import Alignment
from rahf.data.contrast import Responses
from rahf.influence.objectives import (
    SIDES,
    Batch,
    Gate,
    Objective,
    Read,
    batch_of,
    drawn,
    logistic_pseudo,
    open_gate,
    pair_names,
    sampled_cross_entropy,
    signs,
)
from rahf.models.likelihood import token_likelihood
from rahf.objective import RESOLUTION
from rahf.recipe.method_options import MethodOptions
from rahf.terms import Evidence, Term, values_of
from rahf.training.preparation import collator_for
from rahf.views import Frozen, run_rows


def alignment_objective(
    alignment: Alignment,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    retained: Sequence[list[int]],
) -> Objective:
    """Return the loss of an alignment; a pair's is the mean over its responses.

    Where one side of each pair is drawn in every epoch, both count a half.

    Raises:
        ValueError: a term couples the pairs of a batch.
    """
    alignment = by_pairs(alignment)
    options, collator = alignment.options, collator_for(alignment.options, tokenizer, packed=False)
    several = options.response_source == "both"
    sides = SIDES if several else (options.response_source,)

    def collate(places: Sequence[int], whole: bool, _: int) -> Batch:
        items = Responses(rows, options.response_source, retained if whole else ())
        each = len(sides)
        chosen = [items[each * place + side] for place in places for side in range(each)]
        inputs, count = collator(chosen), len(places)
        texts = inputs["retained_texts"]
        example = torch.cat([torch.arange(count * each) // each, count + torch.arange(texts)])
        side = torch.tensor([SIDES.index(sides[i % each]) for i in range(count * each)])
        side = torch.cat([side, torch.zeros(texts, dtype=torch.long)])
        return batch_of(inputs, inputs["reference"], pair_names(rows, places), example, side)

    def read(batch: Batch, gate: Gate) -> Read:
        per_response = response_losses(alignment, batch, gate)
        return Read(per_response.view(-1, len(sides)).mean(1))

    def pseudo(batch: Batch) -> Tensor:
        return alignment_pseudo(alignment, batch, share=1 / len(sides))

    return Objective(alignment.model, rows, sides, collate, read, pseudo)


def by_pairs(alignment: Alignment) -> Alignment:
    """Return the alignment with all sides of a pair at once.

    Raises:
        ValueError: a term couples the pairs of a batch.
    """
    given = alignment.options
    if given.similarity_weight:
        raise ValueError(
            f"similarity_weight: {given.similarity_weight} compares the pairs of a batch with "
            "each other, so that no pair has a loss of its own. Influence needs an adapter that "
            "was trained with similarity_weight: 0."
        )
    # Without the training arguments beside them, which cannot be copied.
    values = {spec.name: getattr(given, spec.name) for spec in fields(MethodOptions)}
    if given.response_source == "random":
        values["response_source"] = "both"
    return replace(alignment, options=MethodOptions(**values), packed=False)


def terms_in(alignment: Alignment, batch: Batch) -> tuple[Term, ...]:
    with_texts = batch.inputs["retained_texts"]
    terms = (term for term in alignment.terms if with_texts or term.rows != "retained")
    return tuple(term for term in terms if term.weight_at(1.0))


def evidence_of(
    alignment: Alignment, batch: Batch, gate: Gate = open_gate, frozen: Frozen | None = None
) -> Evidence:
    """Return what the terms read; the gate is at the aligned states and the scored logits."""
    inputs, rows = batch.inputs, batch.inputs["reference"]
    frozen = frozen or alignment.read_views(inputs)
    reads = any(term.logits for term in terms_in(alignment, batch))
    model = alignment.model
    hidden, logits = run_rows(model, model, alignment.layers, rows, predictions=reads)
    hidden = gate(hidden, rows["aligned"])
    if logits is not None:
        logits = gate(logits, rows["scored"].flatten().nonzero().squeeze(1))
    return Evidence(inputs, hidden, alignment.target(inputs, frozen), logits, frozen.logits)


def response_losses(
    alignment: Alignment, batch: Batch, gate: Gate = open_gate, frozen: Frozen | None = None
) -> Tensor:
    """Return the loss of each response, with the final weights of the terms."""
    terms = terms_in(alignment, batch)
    values = values_of(terms, evidence_of(alignment, batch, gate, frozen))
    return sum(term.weight_at(1.0) * values[term.name] for term in terms)


def alignment_pseudo(alignment: Alignment, batch: Batch, share: float) -> Tensor:
    """Return the sum of the pseudo-losses of all terms and rows.

    Args:
        share: of a response in the loss of its pair.
    """
    evidence, total = evidence_of(alignment, batch), 0.0
    pseudo_of = pseudo_losses(alignment.options)
    for term in terms_in(alignment, batch):
        counts = batch.inputs["kinds"][term.rows].float() * share / term.share
        weight = (term.weight_at(1.0) * counts).sqrt()  # of each row
        keys = [f"{term.name} {name}" for name in batch.inputs["items"]]
        pseudo = pseudo_of.get(_kind(alignment.options, term))
        if pseudo is None:
            total = total + (weight.square() * term.value(evidence)).sum()
        else:
            total = total + pseudo(evidence, weight, keys)
    return total


def _kind(options: MethodOptions, term: Term) -> str:
    """Return what the term is: the name of a distance, or its own name."""
    if term.name in ("align", "retain", "chosen"):
        return options.distance
    pushes = options.facts.pushes_by
    if term.name == "rejected":
        return options.distance if pushes == "distance" else str(pushes)
    return term.name


def _distance_pseudo(
    evidence: Evidence, weight: Tensor, keys: list[str], *, squared: bool
) -> Tensor:
    """Return <C^1/2 noise, states> with C the second derivative of the distance in the states:
    (1 - u u^T) / |e| of the norm of e = |e| u, and 2 of its square.
    """
    owner, hidden = evidence.batch["reference"]["aligned_owner"], evidence.hidden
    counts = torch.bincount(owner, minlength=len(weight))
    layers, _, width = hidden.shape
    noise = drawn(keys, counts.tolist(), normal=layers * width).to(hidden)
    noise = noise.view(-1, layers, width).transpose(0, 1)
    scale = evidence.target.scale[:, owner]
    share = 1 / (counts.clamp(min=1)[owner] * layers * scale)
    if squared:
        spread = (2 * share / scale).sqrt()
    else:
        error = (hidden - evidence.target.states).detach()
        size = error.norm(dim=-1)
        unit = error / size.clamp(min=1e-30).unsqueeze(-1)
        noise = noise - unit * (unit * noise).sum(-1, keepdim=True)
        still = size <= RESOLUTION * evidence.target.reference.norm(dim=-1)
        spread = torch.where(still, 0.0, (share / size.clamp(min=1e-30)).sqrt())
    return (weight[owner] * spread * (noise * hidden).sum(-1)).sum()


def _label_pseudo(
    evidence: Evidence, weight: Tensor, keys: list[str], *, heat: float = 1.0
) -> Tensor:
    """Return the cross entropy of drawn labels, a mean over a row's tokens under the root."""
    block = evidence.batch["reference"]
    owner = block["owner"][:, 1:][block["scored"][:, 1:]]
    counts = torch.bincount(owner, minlength=len(weight))
    uniform = drawn(keys, counts.tolist())
    tokens = heat * sampled_cross_entropy(evidence.policy / heat, uniform)
    return (weight[owner] * tokens / counts.clamp(min=1)[owner].sqrt()).sum()


def _dpo_pseudo(evidence: Evidence, weight: Tensor, keys: list[str], *, beta: float) -> Tensor:
    block, responses = evidence.batch["reference"], len(evidence.batch["row"])
    scored = block | {"response_mask": block["scored"]}
    own, base = (
        token_likelihood(logits, scored).sums()[:responses]
        for logits in (evidence.policy, evidence.reference)
    )
    pseudo = logistic_pseudo(beta * (own - base).view(-1, 2).diff(dim=1))
    # Both responses have the pair's loss, hence the root of two.
    return (2**0.5 * weight[:responses:2] * pseudo[:, 0] * signs(keys[:responses:2]).to(own)).sum()


Pseudo = Callable[[Evidence, Tensor, list[str]], Tensor]


def pseudo_losses(options: MethodOptions) -> dict[str, Pseudo]:
    """Return the pseudo-losses by the kind of a term."""
    return {
        "l2": partial(_distance_pseudo, squared=False),
        "squared_l2": partial(_distance_pseudo, squared=True),
        "kl": partial(_label_pseudo, heat=options.facts.kl_temperature),
        "sft": _label_pseudo,
        "dpo": partial(_dpo_pseudo, beta=options.dpo_beta),
    }
