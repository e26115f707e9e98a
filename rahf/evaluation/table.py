"""One row of the table at the end of a run: a model's preferences, its answers and its general
ability.

Knows a model that can be asked, ids and a judge; knows no method and no file.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from rahf.data.rows import Pairs
from rahf.evaluation.ability import text_loss
from rahf.generation.answers import generate, pad_id
from rahf.judges.lexicon import Judge, shows
from rahf.models.likelihood import preference_margins

ANSWERS_AT_ONCE = 64
"""Prompts in a batch of generation, whose cost is reading the weights once a token."""


@dataclass(frozen=True)
class HeldOut:
    """What every row of the table is measured on; an empty part is not measured."""

    pairs: Pairs  # tokenised pairs
    prompts: Sequence[list[int]]  # ids of prompts to answer
    unrelated: Sequence[list[int]]  # ids of texts
    judge: Judge | None
    sign: int  # side of the judge's scale that is wanted
    max_new_tokens: int


@dataclass(frozen=True)
class Measured:
    """One row of the table; None where it was not measured."""

    preference_accuracy: float | None = None  # share of pairs whose chosen side is likelier
    preference_margin: float | None = None  # nats per token
    answers: int = 0
    judged_mean: float | None = None  # mean score of the answers on the judge's scale
    judged_se: float | None = None  # its standard error over prompts
    shows_wanted: float | None = None  # share of prompts whose answer shows the wanted behaviour
    shows_opposite: float | None = None  # share whose answer shows its opposite
    unrelated_loss: float | None = None  # nats per token

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, held_out: HeldOut, name: str
) -> tuple[Measured, list[str]]:
    """Measure `model` as it is set now; returns the row and its answers."""
    values: dict[str, Any] = {}
    if held_out.pairs:
        margins = preference_margins(model, held_out.pairs, pad_id(tokenizer))
        values["preference_accuracy"] = (margins > 0).double().mean().item()
        values["preference_margin"] = margins.double().mean().item()
    answers: list[str] = []
    if held_out.prompts:
        answers = generate(
            model,
            tokenizer,
            held_out.prompts,
            max_new_tokens=held_out.max_new_tokens,
            batch_size=ANSWERS_AT_ONCE,
            progress=f"answers of {name}",
        )
        values |= {"answers": len(answers), **_judged(answers, held_out)}
    if held_out.unrelated:
        values["unrelated_loss"] = text_loss(model, held_out.unrelated, pad_id(tokenizer))
    return Measured(**values), answers


def _judged(answers: list[str], held_out: HeldOut) -> dict[str, float]:
    if held_out.judge is None:
        return {}
    scores = held_out.judge(answers)
    return {
        "judged_mean": fmean(scores),
        "judged_se": stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0,
        "shows_wanted": fmean(shows(scores, held_out.sign)),
        "shows_opposite": fmean(shows(scores, -held_out.sign)),
    }
