"""The terms of the loss: which rows each is a mean over, with what weight, and what value it has.

`terms_of` lists the terms of a training, and one function values every term. Knows batches, hidden
states and logits; knows no model, and of a method only its row in the table.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rahf.data.contrast import Batch, RowKind
from rahf.data.rows import Rows, row_count
from rahf.models.likelihood import Likelihood, token_likelihood
from rahf.objective import (
    Distance,
    Target,
    dissimilarity,
    dpo_loss,
    protected_loss,
    row_loss,
    row_mean,
    token_divergence,
)
from rahf.recipe.method_options import MethodOptions

Schedule = Literal["constant", "falling", "rising"]
Logits = Literal["policy", "reference"]

SHARE = {"chosen": 1.0, "rejected": 1.0, "both": 0.5, "random": 0.5}
"""Share of the responses that are of one side, by `response_source`."""


class Evidence(NamedTuple):
    """Inputs of the terms of one batch."""

    batch: Batch
    hidden: Float[Tensor, "layers tokens d_model"]  # of the policy, at the aligned tokens
    target: Target
    policy: Float[Tensor, "scored vocab"] | None  # logits that predict the scored tokens
    reference: Float[Tensor, "scored vocab"] | None  # logits of the frozen reference
    protected: Float[Tensor, "layers basis d_model"] | None = None  # orthonormal, per layer


class Term(NamedTuple):
    """A part of the loss."""

    name: str  # under which it is logged
    rows: RowKind
    value: Callable[[Evidence], Float[Tensor, " rows"]]  # of every row, or of every response
    weight: float
    schedule: Schedule = "constant"
    share: float = 1.0  # of the responses that `rows` are
    logits: tuple[Logits, ...] = ()  # that `value` reads

    def weight_at(self, elapsed: float) -> float:
        """Return the weight when a share `elapsed` of all steps is done.

        Falling: from `weight` to a half of it. Rising: from 0 to a half of it (circuit breakers,
        arXiv 2406.04313, algorithm 1).
        """
        shares = {"constant": 1.0, "falling": 1 - elapsed / 2, "rising": elapsed / 2}
        return shares[self.schedule] * self.weight


def terms_of(options: MethodOptions) -> tuple[Term, ...]:
    """Return the terms of a training, in the order in which they are added up."""
    terms = (*_distance_terms(options), *_other_terms(options))
    share = SHARE[options.response_source]
    sides = ("chosen", "rejected")
    return tuple(term._replace(share=share) if term.rows in sides else term for term in terms)


def _distance_terms(options: MethodOptions) -> list[Term]:
    """Return the terms that are distances to the target; those of weight 0 are logged too."""
    method, near = options.facts, DISTANCES[options.distance]
    crossing = options.weights_over_time == "crossing"
    falling: Schedule = "falling" if crossing else "constant"
    rising: Schedule = "rising" if crossing else "constant"
    retain = Term("retain", "retained", near, options.retain_weight, rising)
    if method.pushes_by is None:
        return [Term("align", "responses", near, options.align_weight), retain]
    away = near if method.pushes_by == "distance" else DISTANCES[method.pushes_by]
    rejected = Term("rejected", "rejected", away, options.rejected_weight, falling)
    chosen = Term("chosen", "chosen", near, options.chosen_weight, rising)
    return [rejected, chosen, retain] if options.chosen_weight else [rejected, retain]


def _other_terms(options: MethodOptions) -> list[Term]:
    """Return the optional terms that have a weight."""
    divergence = partial(_divergence, temperature=options.facts.kl_temperature)
    kl_rows: RowKind = "retained" if options.kl_rows == "retain" else "responses"
    preference = partial(_preference, beta=options.dpo_beta)
    both: tuple[Logits, ...] = ("policy", "reference")
    protect_weight = options.protect_weight if options.protect else 0.0
    terms = [
        Term("similarity", "rejected", _similarity, options.similarity_weight),
        Term("protect", "responses", _protected, protect_weight),
        Term("kl", kl_rows, divergence, options.kl_weight, logits=both),
        Term("sft", "chosen", _cross_entropy, options.sft_weight, logits=("policy",)),
        Term("dpo", "responses", preference, options.dpo_weight, logits=both),
    ]
    return [term for term in terms if term.weight]


def scored_kinds(terms: Sequence[Term]) -> tuple[RowKind, ...]:
    """Return the kinds of rows whose predictions the terms read."""
    return tuple(dict.fromkeys(term.rows for term in terms if term.logits))


def values_of(terms: Sequence[Term], evidence: Evidence) -> dict[str, Float[Tensor, " responses"]]:
    """Return the value of each term for each response, by the name of the term.

    The mean over the responses is the mean over the rows of the term: responses of the other side
    count 0, and the others are divided by the share of their side.
    """
    # Terms with the same function share one computation.
    values = {value: value(evidence) for value in dict.fromkeys(term.value for term in terms)}
    responses, found = len(evidence.batch["row"]), {}
    for term in terms:
        start = responses if term.rows == "retained" else 0
        part = slice(start, start + responses)
        counts = evidence.batch["kinds"][term.rows][part]
        found[term.name] = torch.where(counts, values[term.value][part], 0.0) / term.share
    return found


def _distance(evidence: Evidence, distance: Distance) -> Float[Tensor, " rows"]:
    owner = evidence.batch["reference"]["aligned_owner"]
    return row_loss(evidence.hidden, evidence.target, owner, distance)


DISTANCES = {distance: partial(_distance, distance=distance) for distance in get_args(Distance)}
"""The value of a term that is a distance to the target."""


def _similarity(evidence: Evidence) -> Float[Tensor, " responses"]:
    """Return how unlike each other the rejected rows are, each at its first aligned token.

    It couples all rejected rows of a process, as DPO couples the two rows of a pair.
    """
    first, responses = evidence.batch["first_aligned"], len(evidence.batch["row"])
    rejected = evidence.batch["kinds"]["rejected"][:responses]
    return dissimilarity(evidence.hidden[:, first], rejected)


def _protected(evidence: Evidence) -> Float[Tensor, " rows"]:
    owner = evidence.batch["reference"]["aligned_owner"]
    assert evidence.protected is not None  # the term has a weight only where directions are named
    return protected_loss(evidence.hidden, evidence.target, owner, evidence.protected)


def _divergence(evidence: Evidence, temperature: float) -> Float[Tensor, " rows"]:
    rows, policy, reference = evidence.batch["reference"], evidence.policy, evidence.reference
    assert policy is not None  # the term names the logits that it reads
    assert reference is not None
    return kl_divergence(reference, policy, rows["scored"], rows, temperature)


def _cross_entropy(evidence: Evidence) -> Float[Tensor, " rows"]:
    return -_likelihood(evidence.policy, evidence).means()


def _preference(evidence: Evidence, beta: float) -> Float[Tensor, " responses"]:
    responses = len(evidence.batch["row"])
    own, base = (
        _likelihood(logits, evidence).sums()[:responses]
        for logits in (evidence.policy, evidence.reference)
    )
    # Each response of a pair has the pair's loss, so that their mean is the mean over pairs.
    return dpo_loss(own, base, beta).repeat_interleave(2)


def _likelihood(logits: Float[Tensor, "scored vocab"] | None, evidence: Evidence) -> Likelihood:
    rows = evidence.batch["reference"]
    assert logits is not None  # the term names the logits that it reads
    return token_likelihood(logits, rows | {"response_mask": rows["scored"]})


def kl_divergence(
    reference: Float[Tensor, "tokens vocab"],
    policy: Float[Tensor, "tokens vocab"],
    scored: Bool[Tensor, "lines seq"],
    rows: Rows,
    temperature: float = 1.0,
) -> Float[Tensor, " rows"]:
    """Return KL(reference || policy) over the full vocabulary, in nats, mean over a row's tokens.

    Args:
        scored: the tokens that the logits predict, packed row by row.
        temperature: see `token_divergence`.
    """
    per_token = token_divergence(reference, policy, temperature)
    owner = rows["owner"][:, 1:][scored[:, 1:]]
    return row_mean(per_token.unsqueeze(0), owner, row_count(rows))[0]
