"""The terms of the loss that are read from predictions of tokens: KL, SFT and DPO.

They are why a step needs the LM head, and no pass is asked for logits that none of them reads.
Knows batches and logits; knows no hidden state and no model.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rahf.data.contrast import Batch, Rows, row_count
from rahf.models.likelihood import Likelihood, token_likelihood, with_context
from rahf.objective import RowKind, dpo_loss, row_mean
from rahf.recipe.method_options import MethodOptions
from rahf.recipe.methods import METHODS


class PredictionTerm(NamedTuple):
    """A term, one value for each row or response, and the rows of it that count."""

    rows: RowKind
    values: Float[Tensor, " rows"]


def scored_tokens(batch: Batch, options: MethodOptions) -> Bool[Tensor, "lines seq"] | None:
    """Tokens of the block `reference` whose prediction a term reads; None where no term does."""
    if not (options.compares_predictions or options.sft_weight):
        return None
    rows, responses = batch["reference"], len(batch["row"])
    mask = with_context(rows)
    kept = torch.zeros(row_count(rows), dtype=torch.bool, device=mask.device)
    if options.kl_weight:
        kept[responses:] = options.kl_rows == "retain"
        kept[:responses] = options.kl_rows == "responses"
    if options.sft_weight:
        kept[:responses] |= batch["chosen"]
    if options.dpo_weight:
        kept[:responses] = True
    return mask & kept[rows["owner"]]


def prediction_terms(
    policy: Float[Tensor, "tokens vocab"] | None,
    reference: Float[Tensor, "tokens vocab"] | None,
    scored: Bool[Tensor, "lines seq"] | None,
    batch: Batch,
    options: MethodOptions,
) -> dict[str, PredictionTerm]:
    """The terms that have a weight, by name.

    Args:
        policy: logits that predict the tokens `scored`, packed row by row.
        reference: the same of the reference, where a term compares the two.
    """
    rows, responses, terms = batch["reference"], len(batch["row"]), {}
    if options.kl_weight:
        temperature = METHODS[options.method].kl_temperature
        divergence = kl_divergence(reference, policy, scored, rows, temperature)
        kind = "retained" if options.kl_rows == "retain" else "responses"
        terms["kl"] = PredictionTerm(kind, divergence)
    if options.sft_weight:
        terms["sft"] = PredictionTerm("chosen", -_likelihood(policy, scored, rows).means())
    if options.dpo_weight:
        own, base = (
            _likelihood(logits, scored, rows).sums()[:responses] for logits in (policy, reference)
        )
        # Each response of a pair has the pair's loss, so that their mean is the mean over pairs.
        of_pairs = dpo_loss(own, base, options.dpo_beta)
        terms["dpo"] = PredictionTerm("responses", of_pairs.repeat_interleave(2))
    return terms


def _likelihood(logits: Tensor, scored: Tensor, rows: Rows) -> Likelihood:
    return token_likelihood(logits, rows | {"response_mask": scored})


def kl_divergence(
    reference: Float[Tensor, "tokens vocab"],
    policy: Float[Tensor, "tokens vocab"],
    scored: Bool[Tensor, "lines seq"],
    rows: Rows,
    temperature: float = 1.0,
) -> Float[Tensor, " rows"]:
    """KL(reference || policy) over the whole vocabulary, in nats, mean over a row's tokens.

    Args:
        temperature: both logits are divided by it, the divergence multiplied by its square, so that
            gradients keep their size (distillation, arXiv 1503.02531).
    """
    per_token = token_divergence(reference, policy, temperature)
    owner = rows["owner"][:, 1:][scored[:, 1:]]
    return row_mean(per_token.unsqueeze(0), owner, row_count(rows))[0]


def token_divergence(
    reference: Float[Tensor, "tokens vocab"],
    policy: Float[Tensor, "tokens vocab"],
    temperature: float = 1.0,
) -> Float[Tensor, " tokens"]:
    """KL(reference || policy) of each token's prediction, in nats."""
    if temperature != 1:  # logits are large: not copied for nothing
        policy, reference = policy / temperature, reference / temperature
    return temperature**2 * nn.functional.kl_div(
        policy.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
