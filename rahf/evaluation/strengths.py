"""One adapter at several strengths: its answers, and what it costs in general ability.

A strength is a factor on the adapter's update: 0 is the base, 1 the adapter as it was trained. Each
prompt and text is kept by itself, so that whoever reads the figures can draw them anew. Knows
adapters and ids; knows no method, no judge and no file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rahf.data.messages import Message
from rahf.data.prompts import PromptForm
from rahf.data.rows import Pairs, row_count, sequence_rows, with_context
from rahf.evaluation.table import ANSWERS_AT_ONCE
from rahf.generation.answers import answering, answers, pad_id
from rahf.generation.decoding import Decoding
from rahf.models.adapters import POLICY, frozen_pass, scaled
from rahf.models.likelihood import (
    pair_likelihoods,
    predictions,
    token_likelihood,
)
from rahf.models.scoring import scored_together

TEXTS_AT_ONCE = 8


@dataclass(frozen=True)
class Asked:
    """What every row of a comparison is measured on."""

    chats: Sequence[Sequence[Message]]  # prompts, answered greedily
    form: PromptForm  # how they are put to the model
    texts: Sequence[list[int]]  # ids of unrelated texts
    pairs: Pairs  # tokenised
    max_new_tokens: int
    answers_at_once: int = ANSWERS_AT_ONCE


@dataclass
class Measures:
    """One strength of one adapter; lists have an entry a prompt, or a text."""

    strength: float
    answers: list[str] = field(default_factory=list)
    text_loss: list[float] = field(default_factory=list)  # nats, summed over the text
    text_kl: list[float] = field(default_factory=list)  # KL(base || adapter), nats, summed
    text_tokens: list[int] = field(default_factory=list)
    preference_margins: list[float] = field(default_factory=list)  # nats per token, a pair

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def at_strength(model: nn.Module, strength: float) -> Iterator[None]:
    """Let `model` speak with its policy at a strength; 0: as the base, which may be without one."""
    if not isinstance(model, PeftModel):
        assert not strength, "a model without an adapter has strength 0"
        yield
        return
    with frozen_pass(model, POLICY if strength else None):
        if strength in (0, 1):
            yield
            return
        with scaled(model, POLICY, float(strength)):
            yield


def measure_strengths(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
    strengths: Sequence[float],
) -> list[Measures]:
    """Measure the policy at each strength, or a base, at 0; preferences at 0 and 1 alone."""
    found = [Measures(strength) for strength in strengths]
    _read_texts(model, asked.texts, found, pad_id(tokenizer))
    for measures in found:
        with at_strength(model, measures.strength):
            measures.answers = _answers(model, tokenizer, asked)
            if measures.strength in (0, 1) and len(asked.pairs):
                scored = pair_likelihoods(model, asked.pairs, pad_id(tokenizer))
                measures.preference_margins = scored.token_margins().tolist()
    return found


def _answers(model: nn.Module, tokenizer: PreTrainedTokenizerBase, asked: Asked) -> list[str]:
    ids = [asked.form.encode(chat) for chat in asked.chats]
    decoding, texts = Decoding(asked.max_new_tokens), [""] * len(ids)
    with answering(model):
        for row, answer in answers(
            model,
            tokenizer,
            ids,
            decoding,
            batch_size=asked.answers_at_once,
            stops=asked.form.stops,
        ):
            texts[row] = asked.form.extract(answer.text)
    return texts


@torch.no_grad()
def _read_texts(
    model: nn.Module, texts: Sequence[list[int]], found: Sequence[Measures], pad_token_id: int
) -> None:
    """Loss and divergence on every text; the base reads each batch once for all strengths."""
    device = next(model.parameters()).device
    for together in scored_together([len(text) for text in texts], TEXTS_AT_ONCE):
        batch = texts[together]
        rows = send_to_device(sequence_rows([[] for _ in batch], batch, pad_token_id), device)
        rows = rows | {"response_mask": with_context(rows)}
        with at_strength(model, 0):
            base = predictions(model, rows).log_softmax(-1)
        for measures in found:
            with at_strength(model, measures.strength):
                logits = predictions(model, rows) if measures.strength else base
            likelihood = token_likelihood(logits, rows)
            measures.text_loss += (-likelihood.sums()).tolist()
            measures.text_tokens += likelihood.tokens().tolist()
            said = logits.log_softmax(-1) if measures.strength else base
            kl = nn.functional.kl_div(said, base, log_target=True, reduction="none").sum(-1)
            kl = kl.clamp(min=0)  # rounding
            measures.text_kl += _by_row(kl, likelihood.owner, row_count(rows)).tolist()


def _by_row(values: Tensor, owner: Tensor, rows: int) -> Tensor:
    return values.new_zeros(rows).index_add(0, owner, values)
