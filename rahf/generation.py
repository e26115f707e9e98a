"""Text from a model: answers to prompts, and free text for the retain term. Knows models and ids;
knows no method.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase


def left_padded(
    rows: Sequence[list[int]], pad_token_id: int
) -> tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]:
    """Ids and attention mask with the padding on the left, as generation needs them."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    progress: str | None = None,
) -> list[str]:
    """Greedy answers to prompts given as ids, in their order.

    Prompts are batched by length, so that little is padded; a row ends at its own end-of-text
    token.
    """
    pad, device = pad_id(tokenizer), next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    for start in tqdm(
        range(0, len(order), batch_size), desc=progress, disable=progress is None, leave=False
    ):
        indices = order[start : start + batch_size]
        ids, mask = left_padded([prompts[index] for index in indices], pad)
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=end_ids(model, tokenizer),
        )
        for index, row in zip(indices, output[:, ids.shape[1] :], strict=True):
            answers[index] = tokenizer.decode(row, skip_special_tokens=True).strip()
    model.train(was_training)
    return answers


@torch.no_grad()
def sample_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int,
    tokens: int,
    seed: int,
    batch_size: int = 32,
) -> list[list[int]]:
    """Ids of texts that the model writes when it is given nothing but its first token, at
    temperature 1.

    They show what the model does anyway, and need no data: rows for the retain term.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    texts: list[list[int]] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        while len(texts) < rows:
            ids = torch.full((min(batch_size, rows - len(texts)), 1), start, device=device)
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens - 1,
                min_new_tokens=min(8, tokens - 1),
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                pad_token_id=pad_id(tokenizer),
            )
            texts += [cut_padding(row.tolist(), tokenizer) for row in output]
    model.train(was_training)
    return texts


def cut_padding(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids up to and including the first end-of-text after the start."""
    for index, token in enumerate(ids[1:], start=1):
        if token == tokenizer.eos_token_id:
            return ids[: index + 1]
    return ids


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text: those of the model, and the tokenizer's, which the training ends on."""
    of_model = model.generation_config.eos_token_id
    of_model = of_model if isinstance(of_model, list) else [of_model]
    return sorted({token for token in (*of_model, tokenizer.eos_token_id) if token is not None})


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding id, or the end-of-text id where there is none: its mask tells padding."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
