"""The falsifiable form of an explanation: on which unseen prompts the aligned model should differ
from its base, by the sentences of the features that moved.

A judge reads a sentence and a prompt; the models are measured on the responses. Knows judgements
and measurements; knows no model.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from peft import PeftModel
from torch import Tensor
from tqdm.auto import tqdm

from rahf.interpret.explanations.judging import Asked
from rahf.interpret.explanations.questions import asked_of
from rahf.interpret.explanations.records import Record
from rahf.interpret.explanations.score import shuffled
from rahf.interpret.explanations.scoring import Answer, area_figures
from rahf.interpret.explanations.tokens import TokenTexts
from rahf.interpret.explanations.values import Values
from rahf.interpret.features.bases import check_base
from rahf.interpret.features.dictionary import Dictionary
from rahf.interpret.features.firing import chosen_activations
from rahf.interpret.features.held_out import batches, check_held_out, encoded
from rahf.interpret.features.responses import HeldOut, read_batch


class Differing(NamedTuple):
    """How far the models differ on each prompt, in the order of the prompts' numbers."""

    prompts: list[int]
    divergence: Float64[Tensor, " prompts"]  # mean KL, nats per response token
    changes: Float64[Tensor, "prompts features"]  # mean change of the activation, any sign


def measure_difference(
    model: PeftModel,
    dictionary: Dictionary,
    latents: Sequence[int],
    held_out: Sequence[HeldOut],
    pad_token_id: int,
    special: Sequence[int],
    batch_size: int = 4,
) -> Differing:
    """Read every response as the base and as the aligned model.

    Raises:
        ValueError: a dictionary of another model; responses to fewer than two prompts.
    """
    held_out = [each for each in held_out if set(each.response_ids) - set(special)]
    check_held_out(held_out)
    check_base(dictionary, model)
    wanted = torch.tensor(latents, dtype=torch.long)
    sums: dict[int, Tensor] = {}  # of each prompt: tokens predicted and read, KL, changes
    for _, batch in tqdm([*batches(held_out, batch_size)], "reading", leave=False):
        read = read_batch(model, dictionary, ("default",), batch, pad_token_id, special)
        codes, _ = encoded(dictionary, read)
        change = (
            chosen_activations(codes["default"], wanted) - chosen_activations(codes[None], wanted)
        ).double()
        parts = change.cpu().split(read.lengths)
        predicted = zip(read.predicted, read.divergences, strict=True)
        for each, part, (tokens, divergence) in zip(batch, parts, predicted, strict=True):
            head = torch.tensor([tokens, len(part), divergence * tokens], dtype=torch.double)
            found = torch.cat([head, part.sum(0)])
            sums[each.prompt] = sums.get(each.prompt, 0) + found
    prompts = sorted(sums)
    table = torch.stack([sums[prompt] for prompt in prompts])
    changes = table[:, 3:] / table[:, 1:2]
    return Differing(prompts, table[:, 2] / table[:, 0], changes.abs())


class Moved(NamedTuple):
    """A feature that moved, and its sentence."""

    feature: int
    effect: float
    explanation: str
    other: str | None  # sentence of another feature


def moved_with(
    rows: Sequence[Mapping[str, Any]], records: Sequence[Record], seed: int
) -> list[Moved]:
    """Return the features of a diff that moved and are explained, each with the sentence
    of another feature.

    Raises:
        ValueError: there are none.
    """
    known = {
        record.unit.number: (record.explanation, other)
        for record, other in zip(records, shuffled(records, seed), strict=True)
        if record.unit.kind == "feature" and record.explanation is not None
    }
    found = [
        Moved(row["feature"], row["effect"], *known[row["feature"]])
        for row in rows
        if row["moved"] and row["feature"] in known
    ]
    if not found:
        raise ValueError(
            "no feature of the diff both moved and is explained: explain those that moved (rahf "
            "features explain --moved)."
        )
    return found


def prompts_asked(
    held_out: Sequence[HeldOut], prompts: Sequence[int], texts: TokenTexts, *, whole: bool
) -> list[Asked]:
    """Return what the judge reads of each prompt.

    Args:
        whole: the first response to it as well.
    """
    first: dict[int, HeldOut] = {}
    for each in held_out:
        first.setdefault(each.prompt, each)
    ids = [
        [*first[prompt].prompt_ids, *(first[prompt].response_ids if whole else [])]
        for prompt in prompts
    ]
    return [asked_of("", each, texts) for each in ids]


def predict(
    moved: Sequence[Moved],
    read: Sequence[Asked],
    differing: Differing,
    values: Values,
) -> dict[str, Any]:
    """Return, for each feature and for all together, the AUC with which its sentence finds the
    prompts on which the models differ more than on half of them.

    Args:
        read: prompts as the judge is shown them; their explanations are not read.
    """
    answers = _answers(moved, read, values)
    differs = _above_median(differing.divergence)
    rows = [
        {
            **each._asdict(),
            "differs": _figures(own, differs),
            "changes": _figures(own, _above_median(differing.changes[:, row])),
            "shuffled": {} if other is None else _figures(other, differs),
        }
        for row, (each, (own, other)) in enumerate(zip(moved, answers, strict=True))
    ]
    together = {
        name: _figures(_largest([pair[place] for pair in answers], len(read)), differs)
        for place, name in enumerate(("differs", "shuffled"))
    }
    return {"prompts": len(read), "features": rows, "together": together}


Given = list[float | None]


def _answers(
    moved: Sequence[Moved], read: Sequence[Asked], values: Values
) -> list[tuple[Given, Given | None]]:
    """Return what the own sentence and the other say of each prompt, asked all at once."""
    sentences = [text for each in moved for text in (each.explanation, each.other) if text]
    asked = [prompt._replace(explanation=text) for text in sentences for prompt in read]
    given = iter(values(asked))

    def of(sentence: str | None) -> Given | None:
        return None if sentence is None else [next(given) for _ in read]

    return [(of(each.explanation), of(each.other)) for each in moved]


def _above_median(values: Float64[Tensor, " prompts"]) -> list[bool]:
    return (values > values.median()).tolist()


def _figures(values: Sequence[float | None], truth: Sequence[bool]) -> Mapping[str, Any]:
    return area_figures([Answer(v, t, "prompt") for v, t in zip(values, truth, strict=True)])


def _largest(answers: Sequence[Sequence[float | None] | None], count: int) -> list[float | None]:
    """Return the largest value of each prompt; None where no feature has one."""
    known = [each for each in answers if each is not None]
    columns = zip(*known, strict=True) if known else [()] * count
    found = [[value for value in column if value is not None] for column in columns]
    return [float(np.max(column)) if column else None for column in found]
