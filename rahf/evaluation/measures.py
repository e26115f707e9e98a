"""What a model does on held-out data: its preferences, its answers and its general ability.

The same measures for a base, a teacher and a policy, and for a policy at several strengths. Each
prompt, text and pair is kept by itself. Knows a model and ids; knows no method, no judge and no
file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rahf.data.messages import Message
from rahf.data.prompts import PromptForm
from rahf.data.rows import Pairs
from rahf.evaluation.divergence import read_texts
from rahf.evaluation.intervals import check_finite, interval_of_share, share_estimate
from rahf.generation.answers import generate, pad_id
from rahf.models.adapters import at_strength
from rahf.models.likelihood import preference_margins, preferred

ANSWERS_AT_ONCE = 64
"""Prompts in a batch of generation, whose cost is reading the weights once a token."""


@dataclass(frozen=True)
class HeldOut:
    """What models are measured on; an empty part is not measured."""

    pairs: Pairs  # tokenised
    chats: Sequence[Sequence[Message]]  # prompts, answered greedily
    form: PromptForm  # how they are put to the model
    texts: Sequence[list[int]]  # ids of unrelated texts
    max_new_tokens: int  # of an answer
    answers_at_once: int = ANSWERS_AT_ONCE


@dataclass(frozen=True)
class Measures:
    """A model, or its policy at one strength; lists have an entry a prompt, a text or a pair."""

    strength: float | None  # a factor on the adapter's update; None: the model as it was set
    answers: list[str]
    text_loss: list[float]  # nats, summed over the text
    text_kl: list[float]  # KL(base || policy), nats, summed over the text
    text_tokens: list[int]
    preference_margins: list[float]  # nats per token

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    strengths: Sequence[float | None] = (None,),
    *,
    progress: str | None = None,
) -> list[Measures]:
    """Measure a model as it is set now, or its policy at each strength; a base has strength 0.

    Preferences are not measured at strengths other than 0 and 1.

    Raises:
        ValueError: a margin, loss or divergence is not finite.

    Args:
        progress: name of the model beside a progress bar; None: no bar.
    """
    pad, found = pad_id(tokenizer), []
    prompts = [held_out.form.encode(chat) for chat in held_out.chats]
    read = read_texts(model, held_out.texts, pad, strengths)
    for strength, text in zip(strengths, read, strict=True):
        margins: list[float] = []
        with at_strength(model, strength):
            if strength in (None, 0, 1) and len(held_out.pairs):
                margins = preference_margins(model, held_out.pairs, pad).tolist()
            answers = generate(
                model,
                tokenizer,
                prompts,
                max_new_tokens=held_out.max_new_tokens,
                batch_size=held_out.answers_at_once,
                stops=held_out.form.stops,
                extract=held_out.form.extract,
                progress=progress and f"answers of {progress}",
            )
        found.append(Measures(strength, answers, *(part.tolist() for part in text), margins))
        _check_measures(found[-1])
    return found


def _check_measures(measures: Measures) -> None:
    check_finite(measures.preference_margins, "the preference margin of pair")
    check_finite(measures.text_loss, "the loss of unrelated text")
    check_finite(measures.text_kl, "the divergence from the base on unrelated text")


def model_figures(measures: Measures, judged: Mapping[str, float | None]) -> dict[str, Any]:
    """Return a row of the table at the end of a run; None marks what was not measured.

    Args:
        judged: what the judge makes of the answers (`scores.judged_figures`).
    """
    margins, read = measures.preference_margins, bool(measures.text_loss)
    loss = sum(measures.text_loss) / sum(measures.text_tokens) if read else None
    accuracy = share_estimate(preferred(torch.tensor(margins)).tolist())
    return {
        "preference_accuracy": accuracy.mean if accuracy else None,
        **({"preference_accuracy_interval": [*accuracy[1:]]} if accuracy else {}),
        "preference_margin": fmean(margins) if margins else None,  # nats per token
        "answers": len(measures.answers),
        **judged,
        "unrelated_loss": loss,  # nats per token
    }


def preferences_of(metrics: Mapping[str, Any], pairs: int) -> dict[str, Any]:
    """Return accuracy and margin of a policy from the metrics of its alignment.

    Args:
        pairs: how many the alignment has measured them on.
    """
    accuracy = metrics.get("eval_preference/accuracies")
    interval = None if accuracy is None else interval_of_share(accuracy, pairs)
    return {
        "preference_accuracy": accuracy,
        **({"preference_accuracy_interval": [*interval[1:]]} if interval else {}),
        "preference_margin": metrics.get("eval_preference/margins"),
    }
