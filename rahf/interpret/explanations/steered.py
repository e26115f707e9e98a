"""Texts that a model writes while a unit is pinned, at the same divergence for all units.

Knows a model, dictionaries and prompts of ids; knows no explanation.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rahf.artifacts import read_lines
from rahf.generation.answers import answering, answers
from rahf.generation.decoding import Decoding
from rahf.generation.record_file import ResumableFile
from rahf.interpret.features.dictionary import Dictionary
from rahf.interpret.features.intervention import (
    Intervention,
    NoStrengthError,
    intervene,
    strength_at,
)
from rahf.models.adapters import pad_id

PROMPT = 12
"""Tokens of a neutral text that a text begins with."""


class Steering(NamedTuple):
    """A model, and how its units are pinned."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    neutral: Sequence[list[int]]  # texts that strengths are solved on, and that are continued
    kl: float  # nats per token of neutral text
    tokens: int = 24  # of a text
    batch_size: int = 16

    def plain(self) -> list[list[int]]:
        """Return the ids that the model writes after the beginning of each neutral text."""
        prompts = [ids[:PROMPT] for ids in self.neutral]
        with answering(self.model):
            written = dict(
                answers(
                    self.model,
                    self.tokenizer,
                    prompts,
                    Decoding(self.tokens),
                    batch_size=self.batch_size,
                )
            )
        return [written[row].ids for row in range(len(prompts))]

    def pinned(self, dictionary: Dictionary, latent: int) -> "Pinned":
        """Return what it writes while a latent is pinned, or that no strength does so much."""
        try:
            strength = strength_at(
                self.model,
                dictionary,
                latent,
                "pin",
                self.kl,
                self.neutral,
                pad_id(self.tokenizer),
            )
        except NoStrengthError:
            return Pinned(None, [])
        pin = [Intervention(latent, "pin", strength)]
        with intervene(self.model, dictionary, pin, start="generated"):
            return Pinned(strength, self.plain())


class Pinned(NamedTuple):
    """What a model wrote while a unit was pinned."""

    strength: float | None  # None: no strength moves the predictions by as much
    written: list[list[int]]


class Written(NamedTuple):
    """Texts of the model as it is, and of each unit pinned."""

    plain: list[list[int]]
    pinned: list[Pinned | None]  # None: the unit was left out


def write_steered(
    steering: Steering, places: Sequence[tuple[Dictionary, int] | None], file: ResumableFile
) -> Written:
    """Return what the model writes while each unit is pinned; a killed run resumes.

    Args:
        places: dictionary and latent of each unit; None: left out.
    """
    if not file.complete:
        file.begin()
        if not file.records:
            file.add([{"row": -1, "written": steering.plain()}])
        done = {record["row"] for record in file.records}
        left = [row for row, place in enumerate(places) if place is not None and row not in done]
        for row in tqdm(left, desc="steering", leave=False):
            file.add([{"row": row, **steering.pinned(*places[row])._asdict()}])
        file.finish("".join(json.dumps(record) + "\n" for record in file.records))
    lines = {line["row"]: line for line in read_lines(file.path)}
    found = [lines.get(row) for row in range(len(places))]
    pinned = [None if line is None else Pinned(line["strength"], line["written"]) for line in found]
    return Written(lines[-1]["written"], pinned)
