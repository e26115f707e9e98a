"""General ability beside the change: loss and divergence on text that the pairs do not touch.

Knows a model and ids; knows no method, no judge and no file.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device
from jaxtyping import Float, Int
from torch import Tensor, nn

from rahf.data.rows import sequence_rows, with_context
from rahf.models.adapters import at_strength
from rahf.models.likelihood import Likelihood, predictions, token_likelihood
from rahf.models.scoring import scored_together
from rahf.report.progress import timed

TEXTS_IN_FORWARD = 8


class TextFigures(NamedTuple):
    """How a model reads texts, in their order."""

    losses: Float[Tensor, " texts"]  # nats, summed over the text
    divergences: Float[Tensor, " texts"]  # KL(base || model), nats, summed over the text
    tokens: Int[Tensor, " texts"]  # that have a token before them


@torch.no_grad()
def read_texts(
    model: nn.Module,
    texts: Sequence[list[int]],
    pad_token_id: int,
    strengths: Sequence[float | None] = (None,),
) -> list[TextFigures]:
    """Return the loss and the divergence of every text at each strength of the policy.

    Texts of like length are read together. The base reads each batch once for all strengths.

    Args:
        strengths: see `at_strength`. None has no divergence: it is 0.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    losses, divergences = torch.zeros(2, len(strengths), len(texts), dtype=torch.double)
    tokens = torch.zeros(len(texts), dtype=torch.long)
    lengths = [len(texts[index]) for index in order]
    for together in timed([*scored_together(lengths, TEXTS_IN_FORWARD)], "unrelated text"):
        indices = order[together]
        batch = [texts[index] for index in indices]
        rows = send_to_device(sequence_rows([[] for _ in batch], batch, pad_token_id), device)
        rows = rows | {"response_mask": with_context(rows)}
        base = None
        if any(strength is not None for strength in strengths):
            with at_strength(model, 0):
                base = predictions(model, rows)
        for at, strength in enumerate(strengths):
            with at_strength(model, strength):
                logits = base if strength == 0 else predictions(model, rows)
            scored = token_likelihood(logits, rows)
            losses[at, indices] = -_by_text(scored.logprobs, scored)
            tokens[indices] = scored.tokens().cpu()
            if strength:
                divergences[at, indices] = _by_text(_divergence(logits, base), scored)
    return [TextFigures(*found, tokens) for found in zip(losses, divergences, strict=True)]


def _divergence(
    logits: Float[Tensor, "tokens vocab"], base: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    logs, base = logits.log_softmax(-1), base.log_softmax(-1)
    kl = nn.functional.kl_div(logs, base, log_target=True, reduction="none").sum(-1)
    return kl.clamp(min=0)  # rounding


def _by_text(values: Float[Tensor, " tokens"], scored: Likelihood) -> Float[Tensor, " texts"]:
    sums = torch.zeros(scored.rows, dtype=torch.double)
    return sums.index_add(0, scored.owner.cpu(), values.cpu().double())
