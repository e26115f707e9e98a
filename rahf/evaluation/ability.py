"""General ability beside the change: the loss on text that has nothing to do with the pairs."""

from collections.abc import Sequence

import torch
from accelerate.utils import send_to_device
from torch import nn

from rahf.data.rows import sequence_rows
from rahf.models.likelihood import likelihood
from rahf.models.scoring import scored_together


@torch.no_grad()
def text_loss(
    model: nn.Module, texts: Sequence[list[int]], pad_token_id: int, batch_size: int = 8
) -> float:
    """Cross entropy per token, in nats, over all tokens that have something before them."""
    device, order = next(model.parameters()).device, sorted(texts, key=len)
    total, tokens = 0.0, 0
    for together in scored_together([len(text) for text in order], batch_size):
        batch = order[together]
        rows = sequence_rows([[] for _ in batch], batch, pad_token_id)
        scored = likelihood(model, send_to_device(rows, device))
        total -= scored.logprobs.double().sum().item()
        tokens += len(scored.logprobs)
    return total / tokens
