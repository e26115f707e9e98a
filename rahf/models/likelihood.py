"""Log-probability of responses under a model.

The LM head is applied only to the tokens that predict a response.

Knows models and rows of ids (`rows.rows_of_ids`); knows no loss.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from jaxtyping import Float, Int
from torch import Tensor, nn

from rahf.data.rows import (
    Pairs,
    Rows,
    predicting_columns,
    row_count,
    rows_of_ids,
    sequence_rows,
    with_context,
)
from rahf.models.packing import packed_inputs, takes_packed_rows
from rahf.models.scoring import scored_together
from rahf.report.progress import timed

INPUTS = ("input_ids", "attention_mask", "position_ids")


class Likelihood(NamedTuple):
    """Log-probability of each response token, packed over the batch."""

    logprobs: Float[Tensor, " tokens"]  # natural logarithm
    owner: Int[Tensor, " tokens"]  # row of each token
    rows: int

    def sums(self) -> Float[Tensor, " rows"]:
        """Return the log-probability of each response, in nats."""
        return self.logprobs.new_zeros(self.rows).index_add(0, self.owner, self.logprobs)

    def means(self) -> Float[Tensor, " rows"]:
        """Return the log-probability per response token, in nats."""
        return self.sums() / self.tokens()

    def tokens(self) -> Int[Tensor, " rows"]:
        """Return the number of scored tokens of each response; at least 1."""
        return torch.bincount(self.owner, minlength=self.rows).clamp(min=1)


def model_inputs(rows: Rows) -> dict[str, Any]:
    """Return the part of a block of rows that a model's forward takes."""
    if "spans" not in rows:
        return {name: rows[name] for name in INPUTS}
    return {"input_ids": rows["input_ids"], "position_ids": rows["position_ids"]} | packed_inputs(
        rows["spans"], rows["input_ids"].device
    )


def state_inputs(rows: Rows) -> dict[str, Any]:
    """Return the inputs of a forward pass whose states are read, and whose head reads no column.

    The head costs more than it computes where its weights are frozen: from the states of the last
    column alone, which are not contiguous, torch copies the weights once a row.
    """
    none = torch.empty(0, dtype=torch.long, device=rows["input_ids"].device)
    return model_inputs(rows) | {"use_cache": False, "logits_to_keep": none}


def rows_for(
    model: nn.Module,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    pad_token_id: int,
) -> Rows:
    """Return padded rows of prompts and their responses, on the model's device."""
    device = next(model.parameters()).device
    return send_to_device(sequence_rows(prompts, responses, pad_token_id), device)


def response_logits(
    logits: Float[Tensor, "rows columns vocab"], response_mask: Tensor, columns: Tensor
) -> Float[Tensor, "tokens vocab"]:
    """Return the logits that predict response tokens, packed, from logits kept at `columns`."""
    if logits.shape[1] > len(columns):  # a model that ignores logits_to_keep (xLSTM)
        logits = logits[:, columns]
    if len(logits) == 1:  # a single line predicts a response at every one of its columns
        return logits[0].float()
    return logits[response_mask[:, columns + 1]].float()


def likelihood(model: nn.Module, rows: Rows) -> Likelihood:
    """Score the tokens under `response_mask` given the tokens before them.

    A token without context has no score (`rows.with_context`).
    """
    rows = rows | {"response_mask": with_context(rows)}
    return token_likelihood(predictions(model, rows), rows)


def predictions(model: nn.Module, rows: Rows) -> Float[Tensor, "tokens vocab"]:
    """Return the logits that predict the tokens under `response_mask`, packed, in one forward."""
    columns = predicting_columns(rows["response_mask"])
    output = model(**model_inputs(rows), use_cache=False, logits_to_keep=columns)
    return response_logits(output.logits, rows["response_mask"], columns)


def token_likelihood(logits: Float[Tensor, "tokens vocab"], rows: Rows) -> Likelihood:
    """Return log-probabilities from the packed logits of `response_logits`."""
    predicted = rows["response_mask"][:, 1:]
    labels = rows["input_ids"][:, 1:][predicted]
    owner = rows["owner"][:, 1:][predicted]
    logprobs = -nn.functional.cross_entropy(logits, labels, reduction="none")
    return Likelihood(logprobs, owner, row_count(rows))


class PairLikelihoods(NamedTuple):
    """Log-probability (nats) and number of tokens of both responses of pairs."""

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    chosen_tokens: Float[Tensor, " pairs"]
    rejected_tokens: Float[Tensor, " pairs"]

    def token_margins(self) -> Float[Tensor, " pairs"]:
        """Return the mean log-probability per token of chosen minus that of rejected, in nats."""
        return self.chosen / self.chosen_tokens - self.rejected / self.rejected_tokens


@torch.no_grad()
def pair_likelihoods(
    model: nn.Module, pairs: Pairs, pad_token_id: int, batch_size: int = 8
) -> PairLikelihoods:
    """Score both responses of every pair, those of like length together.

    The responses share their prompt where the model takes packed rows; otherwise they are padded.

    Args:
        batch_size: pairs at once, fewer where their responses are long (`scored_together`).
    """
    device, found = next(model.parameters()).device, torch.zeros(len(pairs), 4)
    packed = takes_packed_rows(model)
    whole = [pairs[index] for index in range(len(pairs))]
    order = sorted(range(len(whole)), key=lambda index: len(whole[index]["prompt_ids"]))
    lengths = [
        2 * max(len(whole[index][side]) for side in ("chosen_ids", "rejected_ids"))
        for index in order
    ]
    for together in timed([*scored_together(lengths, batch_size)], "likelihoods"):
        indices = order[together]
        batch = [whole[index] for index in indices]
        prompts = [pair["prompt_ids"] for pair in batch for _ in range(2)]
        responses = [pair[side] for pair in batch for side in ("chosen_ids", "rejected_ids")]
        rows = rows_of_ids(prompts, responses, pad_token_id, packed)
        scored = likelihood(model, send_to_device(rows, device))
        both = torch.stack([scored.sums(), scored.tokens()], 1).float().cpu()
        found[indices] = torch.cat([both[0::2], both[1::2]], 1)
    return PairLikelihoods(*found[:, [0, 2, 1, 3]].unbind(1))


def preferred(margins: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Return 1 for each pair whose chosen side is likelier, 0 for the others, a half for a tie."""
    return (margins.sign() + 1) / 2


def preference_margins(
    model: nn.Module, pairs: Pairs, pad_token_id: int, batch_size: int = 8
) -> Float[Tensor, " pairs"]:
    """Return the mean log-probability per token of chosen minus that of rejected, in nats."""
    return pair_likelihoods(model, pairs, pad_token_id, batch_size).token_margins()
