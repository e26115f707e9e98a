"""The folder of `rahf features explain`: examples, explanations, codes, vectors, verdicts.

Knows files; knows no model.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from rahf.artifacts import identity_of, read_object, staging_of, write_lines
from rahf.interpret.explanations.examples import Example, Examples
from rahf.interpret.explanations.lines import (
    count_in,
    explanation_in,
    number_in,
    read_each,
    unit_of,
)
from rahf.interpret.explanations.units import Projections, Unit, Units
from rahf.interpret.features.dictionary import Dictionary, Origin
from rahf.judges.by_name import VERDICTS_FILE
from rahf.judges.judge import Verdicts

EXPLANATIONS_FILE, EXAMPLES_FILE = "explanations.jsonl", "examples.jsonl"
SCORES_FILE, STEERED_FILE = "scores.jsonl", "steered.jsonl"
VECTORS_FILE, CODES = "vectors.safetensors", "codes"


class Record(NamedTuple):
    """A unit with its examples and its explanation."""

    examples: Examples
    explanation: str | None

    @property
    def unit(self) -> Unit:
        return self.examples.unit


class Vectors(NamedTuple):
    """Directions of units, and the thresholds of those that are no latents."""

    directions: Float[Tensor, "units d_model"]
    thresholds: Float[Tensor, " units"]


def write_vectors(folder: Path, units: Units) -> str:
    """Write directions and thresholds, and return a hash of them."""
    directions = torch.stack([units.vector(index) for index in range(len(units.names))])
    thresholds = [
        torch.zeros(len(part.units))
        if part.units[0].kind == "feature"
        else part.dictionary.thresholds[part.latents].float().cpu()
        for part in units.parts
    ]
    content = save({"directions": directions, "thresholds": torch.cat(thresholds)})
    staging = staging_of(folder / VECTORS_FILE)
    staging.write_bytes(content)
    staging.replace(folder / VECTORS_FILE)
    return hashlib.sha256(content).hexdigest()[:16]


def read_vectors(folder: Path, device: torch.device | str = "cpu") -> Vectors:
    return Vectors(**load_file(folder / VECTORS_FILE, device=str(device)))


def write_examples(folder: Path, drawn: Iterable[Examples]) -> None:
    write_lines(folder / EXAMPLES_FILE, (_of_examples(each) for each in drawn))


def _of_examples(drawn: Examples) -> dict[str, Any]:
    halves = {half: [e.as_dict() for e in getattr(drawn, half)] for half in ("shown", "scored")}
    return {**drawn.unit._asdict(), "rate": drawn.rate, "windows": drawn.windows, **halves}


def read_examples(folder: Path) -> list[Examples]:
    """Return the examples of every unit.

    Raises:
        ValueError: the folder holds none; a line is not the examples of a unit.
    """
    path = folder / EXAMPLES_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {EXAMPLES_FILE}: give a folder of rahf features explain."
        )
    remedy = f"Delete it and {EXPLANATIONS_FILE}, and run rahf features explain again"
    return list(read_each(path, _examples_in, "the examples of a unit", remedy))


def _examples_in(line: Mapping[str, Any]) -> Examples:
    return Examples(
        unit_of(line),
        number_in(line, "rate"),
        count_in(line, "windows"),
        *([Example.of_dict(each) for each in line[half]] for half in ("shown", "scored")),
    )


def read_records(folder: Path) -> list[Record]:
    """Return the units of a folder with their explanations.

    Raises:
        ValueError: the folder holds no finished explanations, or not those of its examples.
    """
    examples = read_examples(folder)
    if not (folder / EXPLANATIONS_FILE).is_file():
        raise ValueError(
            f"{folder} holds no {EXPLANATIONS_FILE}: rahf features explain has not finished; run "
            "it again, and it resumes."
        )
    explained = _explained_in(folder / EXPLANATIONS_FILE)
    if unlike := explained.keys() ^ {each.unit for each in examples}:
        kind, number, layer = min(unlike, key=str)
        raise ValueError(
            f"{folder}: {kind} {number} of layer {layer} is not in both {EXPLANATIONS_FILE} and "
            f"{EXAMPLES_FILE}. Delete the folder to explain again."
        )
    return [Record(each, explained[each.unit]) for each in examples]


def first_of_each_kind(records: Sequence[Record], count: int | None) -> list[Record]:
    """Return the first `count` features, directions and random directions; None: all."""
    seen: Counter[str] = Counter()
    kept = []
    for record in records:
        seen[record.unit.kind] += 1
        if count is None or seen[record.unit.kind] <= count:
            kept.append(record)
    return kept


def _explained_in(path: Path) -> dict[Unit, str | None]:
    """Return the explanation of each unit in a file.

    Raises:
        ValueError: a line is none of an explanation, or the second of its unit.
    """
    found: dict[Unit, str | None] = {}

    def add(line: Mapping[str, Any]) -> None:
        unit = unit_of(line)
        if unit in found:
            raise ValueError("a second one")
        found[unit] = explanation_in(line)

    remedy = "Delete it, and run rahf features explain again"
    for _ in read_each(path, add, "the one explanation of a unit", remedy):
        pass
    return found


def settings_of(folder: Path) -> dict[str, Any]:
    """Return what the explanations of a folder were made with."""
    return _record_of(folder)["settings"]


def made_from(folder: Path) -> dict[str, str | None]:
    """Return the identity of what the explanations of a folder were made from."""
    return _record_of(folder)["made_from"]


def _record_of(folder: Path) -> dict[str, Any]:
    remedy = "Delete it, and run rahf features explain again."
    path = folder / f"{EXPLANATIONS_FILE}.run.json"
    return read_object(path, remedy, settings=dict, made_from=dict)


def check_content(folder: Path, now: Mapping[str, str | None]) -> None:
    """Refuse explanations whose model, base, dictionary or directions have changed since.

    Args:
        now: identity of model and base as they are; what has none is not compared.
    """
    before = made_from(folder)
    made = settings_of(folder)
    files = {name: identity_of(made[name]) for name in ("dictionary", "directions") if made[name]}
    for name, found in {"model": now["model"], "base": now["base"], **files}.items():
        if before.get(name) is not None and found not in (None, before[name]):
            raise ValueError(
                f"{folder} explains the {name} {made[name] or made['model']} as it was: its "
                f"content was {before[name]} and is {found}. Restore it, or explain again."
            )


def verdicts_in(folder: Path, *, kept: bool) -> Verdicts:
    """Return the answers of language models that the folder keeps; a rule's are not kept."""
    return Verdicts(folder / VERDICTS_FILE if kept else None)


def lines_of(records: Sequence[Record], **columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a line for each unit, with further columns."""
    return [
        {
            **record.unit._asdict(),
            "explanation": record.explanation,
            "rate": record.examples.rate,
            "windows": record.examples.windows,
            **{name: values[row] for name, values in columns.items()},
        }
        for row, record in enumerate(records)
    ]


def places_of(
    records: Sequence[Record], vectors: Vectors, dictionary: Dictionary | None
) -> list[tuple[Dictionary, int] | None]:
    """Return dictionary and latent of each unit that is explained; None: it is not.

    A direction is a dictionary of its own.
    """
    found: list[tuple[Dictionary, int] | None] = []
    for row, record in enumerate(records):
        unit = record.unit
        if record.explanation is None:
            found.append(None)
        elif unit.kind == "feature":
            found.append((dictionary, unit.number))
        else:
            site = "residual" if dictionary is None else dictionary.origin.site
            vector, threshold = (part[row : row + 1] for part in vectors)
            found.append((Projections(Origin("any", None, unit.layer, site), vector, threshold), 0))
    return found
