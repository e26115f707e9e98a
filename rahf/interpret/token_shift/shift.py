"""Token-distribution shift: tokens of an aligned model that its base would not have chosen (Lin et
al. 2023, arXiv 2312.01552, section 2).

Both models read the same text, each in one pass over the full response; ranks and KL come from
their full distributions. Knows models and ids; knows no text and no file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rahf.data.rows import with_context
from rahf.models.adapters import frozen_pass
from rahf.models.likelihood import predictions, rows_for

BUCKETS = ("unshifted", "marginal", "shifted")
"""Rank in the base's predictions: 1; 2 or 3; beyond."""

TOKENS_AT_ONCE = 256
"""Positions whose full distributions are compared together."""


class Shift(NamedTuple):
    """The response tokens of a batch, packed row by row."""

    base_rank: Int[Tensor, " tokens"]  # of the token among the base's predictions, from 1
    aligned_rank: Int[Tensor, " tokens"]  # among the aligned model's
    kl: Float[Tensor, " tokens"]  # KL(aligned || base) over the full vocabulary, nats
    base_logprob: Float[Tensor, " tokens"]  # of the token, nats
    aligned_logprob: Float[Tensor, " tokens"]
    base_choice: Int[Tensor, " tokens"]  # the base's likeliest token


FIGURES = [Shift._fields.index(name) for name in ("kl", "base_logprob", "aligned_logprob")]


@torch.no_grad()
def token_shift(
    aligned: nn.Module,
    base: nn.Module | None,
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    pad_token_id: int,
    names: Sequence[int] = (),
) -> list[Shift]:
    """Return the shift of every token of every response, one `Shift` a response.

    Args:
        aligned: the model that wrote the responses, or is assumed to have written them.
        base: None: the same weights with the adapter off.
        names: numbers of the prompts, for an error; (): their places.

    Raises:
        ValueError: a model's predictions are not finite.
    """
    rows = rows_for(aligned, prompts, responses, pad_token_id)
    rows["response_mask"] = with_context(rows)
    tokens = rows["input_ids"][rows["response_mask"]]
    of_aligned = predictions(aligned, rows)
    with speaking_as_base(aligned, base) as speaker:
        of_base = predictions(speaker, rows)
    shift = compare_predictions(of_aligned, of_base, tokens)
    lengths = rows["response_mask"].sum(1).tolist()
    fields = [field.cpu().split(lengths) for field in shift]
    shifts = [Shift(*response) for response in zip(*fields, strict=True)]
    for index, shift in enumerate(shifts):
        if not all(torch.isfinite(shift[field]).all() for field in FIGURES):
            raise ValueError(
                f"response to prompt {names[index] if names else index}: the predictions of the "
                "aligned model or of the base are not finite there, so they have no ranks: check "
                "both models' weights and dtype"
            )
    return shifts


def compare_predictions(
    aligned: Float[Tensor, "tokens vocab"],
    base: Float[Tensor, "tokens vocab"],
    tokens: Int[Tensor, " tokens"],
) -> Shift:
    """Return the shift from both models' logits at the positions that predict `tokens`."""
    given = [tensor.split(TOKENS_AT_ONCE) for tensor in (aligned, base, tokens)]
    parts = [_compare(*part) for part in zip(*given, strict=True)]
    return Shift(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _compare(aligned: Tensor, base: Tensor, tokens: Tensor) -> Shift:
    aligned, base = aligned.log_softmax(-1), base.log_softmax(-1)
    places = tokens[:, None]
    aligned_logprob, base_logprob = aligned.gather(1, places), base.gather(1, places)
    return Shift(
        base_rank=1 + (base > base_logprob).sum(1),
        aligned_rank=1 + (aligned > aligned_logprob).sum(1),
        # Rounding may give a value slightly below zero where both agree.
        kl=nn.functional.kl_div(base, aligned, reduction="none", log_target=True)
        .sum(1)
        .clamp(min=0),
        base_logprob=base_logprob.squeeze(1),
        aligned_logprob=aligned_logprob.squeeze(1),
        base_choice=base.argmax(1),
    )


def bucket_of(base_rank: int) -> str:
    unshifted, marginal, shifted = BUCKETS
    return unshifted if base_rank == 1 else marginal if base_rank <= 3 else shifted


def check_same_tokenizer(aligned: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where one id does not mean the same token to both models."""
    first, second = aligned.get_vocab(), base.get_vocab()
    if first != second:
        differing = sum(second.get(token) != index for token, index in first.items())
        raise ValueError(
            f"the two models have different tokenizers: {differing} of {len(first)} tokens of the "
            f"aligned model have no or another id in the other's {len(second)}. Ranks can only be "
            "compared between models with one tokenizer."
        )


@contextmanager
def speaking_as_base(aligned: nn.Module, base: nn.Module | None) -> Iterator[nn.Module]:
    """Yield the model that is the base: `base`, or `aligned` with its adapter off.

    Raises:
        ValueError: there is neither.
    """
    if base is not None:
        yield base
    elif isinstance(aligned, PeftModel):
        with frozen_pass(aligned, None):
            yield aligned
    else:
        raise ValueError("the model has no adapter to turn off; name its base")
