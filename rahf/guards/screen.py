"""A data set screened: both sides of its rows read by a model, and what directions and texts say.

Knows a model and rows; knows no file but those of a bank of directions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rahf.artifacts import read_object
from rahf.directions.vectors import FILE_NAME, Directions
from rahf.evaluation.intervals import ratio_estimate
from rahf.guards.projections import Ids, check_projected, evaluation_mode, mean_states
from rahf.guards.screened_rows import Row
from rahf.guards.screening import Forecast, Sides, clustered_p, forecast, totals
from rahf.guards.texts import WordClassifier, are_words, classifier_of, word_score

BANK_RECORD = "bank.json"
BANK_BEGUN = f".{BANK_RECORD}.begun"  # while the folders of a bank are written


@dataclass(frozen=True)
class Bank:
    """Directions by name, and what texts show of each."""

    directions: Mapping[str, Directions]
    classifiers: Mapping[str, WordClassifier]
    words: Mapping[str, Mapping[str, Sequence[str]]]


class Screening(NamedTuple):
    """What was found of a data set."""

    forecasts: dict[str, Forecast]
    texts: dict[str, dict[str, dict[str, float | None]]]  # by direction, by kind of figure
    lengths: dict[str, float | None]  # characters: mean difference with its interval, and p


def load_bank(folder: Path) -> Bank:
    """Return the directions of a folder: its own, or one in each folder inside of it.

    Raises:
        ValueError: there are none, or they are damaged.
    """
    fitted = bank_record(folder)
    folders = [folder] if fitted is None and _holds(folder) else sorted(folder.glob("*/"))
    held = [each for each in folders if _holds(each)]
    if not held:
        raise ValueError(
            f"{folder} holds no directions: give the folder of rahf directions, with or without "
            "--bank."
        )
    missing = sorted((fitted or {}).keys() - {each.name for each in held})
    if missing:
        raise ValueError(
            f"{folder / BANK_RECORD} names {missing[0]!r}, and {folder / missing[0]} holds no "
            f"{FILE_NAME}: take the name out of the file, or delete the folder and fit the bank "
            "again."
        )
    classifiers = {each.name: classifier_of(each) for each in held}
    return Bank(
        {each.name: Directions.load(each) for each in held},
        {name: found for name, found in classifiers.items() if found is not None},
        {name: row["words"] for name, row in (fitted or {}).items() if row.get("words")},
    )


def bank_record(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return what is recorded of each direction of a bank; None: the folder is no bank of a fit.

    Raises:
        ValueError: the record is damaged; its fit has not ended; single directions are there too.
    """
    path, begun = folder / BANK_RECORD, folder / BANK_BEGUN
    if begun.exists():
        raise ValueError(
            f"{folder} holds a part of a bank: its fit has not ended. Delete it and fit the bank "
            "again, or give another folder."
        )
    if not path.exists():
        return None
    remedy = f"Delete {folder} to fit the bank again."
    fitted = read_object(path, remedy, directions=dict)["directions"]
    for name, row in fitted.items():
        if not isinstance(row, dict) or not are_words(row.get("words", {})):
            raise ValueError(f"{path} is damaged: directions.{name} is {row!r:.60}. {remedy}")
    if _holds(folder):
        raise ValueError(
            f"{folder} holds a bank, and {FILE_NAME} of single directions beside it: move that "
            "file to a folder of its own."
        )
    return fitted


def _holds(folder: Path) -> bool:
    """Return whether a folder has a file of directions, whatever it is."""
    path = folder / FILE_NAME
    return path.exists() or path.is_symlink()


def check_bank(bank: Bank, model: nn.Module, layers: tuple[int, ...]) -> None:
    """Refuse a bank that does not fit the model, or lacks one of the layers.

    Raises:
        ValueError: names the direction.
    """
    for name, each in bank.directions.items():
        missing = [layer for layer in layers if layer not in each.layers]
        if missing:
            raise ValueError(
                f"directions {name!r} hold no layers {missing}, which --layers names: give layers "
                "that all of them hold."
            )
    check_projected(model, bank.directions)


def read_sides(
    model: nn.Module,
    layers: tuple[int, ...],
    sides: tuple[Sequence[Ids], Sequence[Ids]],
    group: np.ndarray,
    pad_token_id: int,
    batch_size: int,
) -> Sides:
    """Return the mean states of both sides, those of like length read together."""
    every = [*sides[0], *sides[1]]
    order = sorted(range(len(every)), key=lambda index: sum(map(len, every[index])))
    found: Tensor | None = None
    with evaluation_mode(model), torch.no_grad():
        for start in tqdm(range(0, len(order), batch_size), "reading", leave=False):
            indices = order[start : start + batch_size]
            means = mean_states(model, layers, [every[index] for index in indices], pad_token_id)
            if found is None:
                found = torch.empty(len(layers), len(every), means.shape[2])
            found[:, indices] = means.float().cpu()
    assert found is not None  # there are rows
    return Sides(found[:, : len(sides[0])], found[:, len(sides[0]) :], layers, group)


def screen(bank: Bank, sides: Sides, rows: Sequence[Row], seed: int) -> Screening:
    """Return the forecasts of a bank, and beside each what the texts show."""
    forecasts = forecast(sides, bank.directions, seed)
    # The base has answered rows of one response by now.
    pairs = [(row.first, row.second) for row in rows if row.second is not None]
    assert len(pairs) == len(rows)
    texts: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in bank.directions:
        texts[name] = {}
        if name in bank.words:
            lists = bank.words[name]
            scores = [word_score(a, lists) - word_score(b, lists) for a, b in pairs]
            texts[name]["words"] = clustered(scores, sides.group)
        if name in bank.classifiers:
            score = bank.classifiers[name].score
            scores = [score(first) - score(second) for first, second in pairs]
            texts[name]["classifier"] = clustered(scores, sides.group)
    lengths = [len(first) - len(second) for first, second in pairs]
    return Screening(forecasts, texts, clustered(lengths, sides.group))


def clustered(values: Sequence[float], group: np.ndarray) -> dict[str, float | None]:
    """Return a mean with its interval over prompts, and the p value of its being 0."""
    sums, counts = totals(values, group)
    found = ratio_estimate(sums, counts)
    assert found is not None
    return {**found.as_dict(), "p": clustered_p(sums, counts)}


def summary_of(found: Screening, rows: Sequence[Row], top: int) -> dict[str, Any]:
    """Return the figures for a file; `top` rows that carry each forecast, largest first."""
    return {
        "characters": found.lengths,
        "directions": {
            name: {
                "verdict": each.verdict,
                **each.effect.as_dict(),
                "p_rows": each.p_rows,
                "p_directions": each.p_directions,
                "q": each.q,
                "random": list(each.random),
                "shuffled": list(each.shuffled),
                "texts": found.texts[name],
                "rows": [rows[place].number for place in carriers(each, top)],
            }
            for name, each in found.forecasts.items()
        },
    }


def carriers(each: Forecast, top: int) -> list[int]:
    """Return the places of the rows that push the mean furthest in its direction."""
    sign = 1 if each.effect.mean >= 0 else -1
    return np.argsort(-sign * each.rows, kind="stable")[:top].tolist()


def records_of(found: Screening, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one record a row: its texts, and its effect along every direction."""
    return [
        {
            "row": row.number,
            "prompt": row.messages,
            "towards": row.first,
            "from": row.second,
            "effects": {
                name: round(float(each.rows[place]), 5) for name, each in found.forecasts.items()
            },
        }
        for place, row in enumerate(rows)
    ]
