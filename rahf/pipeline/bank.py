"""A bank of directions fitted for a model: all answers in one pass, then a folder for each name.

Loads nothing; the ideas are in `directions.fitters` and `directions.evidence`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rahf.artifacts import identity_of, read_object, write_json, write_lines
from rahf.data.prompts import chat_prompt_form
from rahf.data.tokenization import tokenize_pairs
from rahf.directions.bank import LEAST_PROMPTS, SIDES, Entry, pairs_of_files, read_bank
from rahf.directions.evidence import fit, measure
from rahf.directions.states import Reader
from rahf.directions.vectors import FILE_NAME, Directions
from rahf.distributed.sharding import take_over_sharding, without_engine
from rahf.generation.answers import TooLongError, generate
from rahf.guards.screen import BANK_BEGUN, BANK_RECORD, bank_record
from rahf.models.adapters import base_name, depth_of, pad_id
from rahf.pipeline.inputs import load_base, load_tokenizer
from rahf.pipeline.read_directions import HELD_OUT_SHARE, evidence_of, rows_hash, write
from rahf.pipeline.stages import output_of_one_run
from rahf.recipe.layers import resolve_layers
from rahf.recipe.recipe import Recipe
from rahf.records.command_line import write_result
from rahf.report.tables import markdown

PAIRS = "pairs.jsonl"


FIGURES = ("pairs", "chosen", "rejected", "layer", "auc", "halves", "norm", "explained")
"""What the table shows of a direction."""


class FittedEntry(NamedTuple):
    """One direction, before it is written."""

    directions: Directions
    evidence: dict[str, Any]
    pairs: Sequence[Mapping[str, str]]
    row: dict[str, Any]  # of the table


class Reading(NamedTuple):
    """How the answers are written and read."""

    layers: tuple[int, ...]
    max_new_tokens: int = 64  # of an answer
    batch_size: int = 16
    seed: int = 0
    progress: str | None = None
    shorten: str = "Give a model with more positions, or the --directions of a bank."  # a remedy


def fit_bank_of_recipe(recipe: Recipe, bank: Path, layers: str | None, folder: Path) -> None:
    """Fit a bank for the model of a recipe, and print the table.

    Raises:
        ValueError: see `fit_bank`; another run writes there.
    """
    take_over_sharding()
    with output_of_one_run(folder, recipe.training.get("use_cpu", False)):
        entries, tokenizer = read_bank(bank), load_tokenizer(recipe)
        with without_engine():
            base = load_base(recipe).eval()
        depth, state = depth_of(base), PartialState()
        reading = Reading(
            resolve_layers(layers or f"0-{depth - 1}", depth),
            recipe.method.max_response_tokens,
            recipe.training_value("per_device_train_batch_size"),
            recipe.training_value("seed"),
            "answers" if state.is_main_process else None,
            "Lower max_response_tokens, or shorten the bank's prompts and instructions.",
        )
        made_from = {"model": identity_of(recipe.model.model_name_or_path) or base_name(base)}
        table = fit_bank(base, tokenizer, entries, folder, reading, made_from)
        state.print(f"{table}\n\ndirections: {folder}")


def fit_bank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    entries: Sequence[Entry],
    folder: Path,
    reading: Reading,
    made_from: Mapping[str, Any],
) -> str:
    """Fit every direction of a bank into `folder/NAME`; return the table of the evidence.

    A bank that is there already, made from the same, is not fitted again.

    Args:
        made_from: the identity of the model.

    Raises:
        ValueError: a direction with too few usable pairs; the folder holds another bank.
    """
    made_with = _made_with(entries, reading, made_from)
    before = _fitted_before(folder, made_with)
    if before is not None:
        return bank_table(before)
    state = PartialState()
    pairs = all_pairs(model, tokenizer, entries, reading)
    found = {
        entry.name: _fit_one(model, tokenizer, entry, pairs[entry.name], reading)
        for entry in entries
    }
    rows = {name: each.row for name, each in found.items()}
    if state.is_main_process:
        _write_bank(folder, found, {"made_with": made_with, "directions": rows})
    state.wait_for_everyone()
    return bank_table(rows)


def _fitted_before(folder: Path, made_with: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Return the rows of the bank that a folder holds; None: it holds none.

    Raises:
        ValueError: it holds another bank, or something else.
    """
    path, begun = folder / BANK_RECORD, folder / BANK_BEGUN
    remedy = f"Delete {folder} to fit the bank again."
    if (folder / FILE_NAME).exists() and not path.exists():
        raise ValueError(
            f"{folder} holds single directions, and a bank is one folder a direction: give "
            f"another folder, or delete {FILE_NAME} there."
        )
    if begun.exists():  # of a fit that was killed while it wrote
        if read_object(begun, remedy).get("made_with") != made_with:
            raise ValueError(f"{folder} holds a part of another bank. {remedy}")
        return None
    rows = bank_record(folder)
    if rows is None:
        return None
    if read_object(path, remedy).get("made_with") != made_with:
        raise ValueError(
            f"{folder} holds a bank of another model, or fitted otherwise: delete it, or give "
            "another folder."
        )
    for name, row in rows.items():
        if not all(isinstance(row.get(key), int | float) for key in FIGURES):
            raise ValueError(f"{path} is damaged: directions.{name} lacks a figure. {remedy}")
    return rows


def _write_bank(folder: Path, found: Mapping[str, "FittedEntry"], record: dict[str, Any]) -> None:
    """Write every direction and then the record; what is half written is marked as such."""
    write_json(folder / BANK_BEGUN, record)
    for name, each in found.items():
        write(folder / name, each.directions, each.evidence)
        write_lines(folder / name / PAIRS, each.pairs)
    write_result(folder / BANK_RECORD, "rahf directions --bank", record)
    (folder / BANK_BEGUN).unlink()


def _made_with(
    entries: Sequence[Entry], reading: Reading, made_from: Mapping[str, Any]
) -> dict[str, Any]:
    how = {"layers": list(reading.layers), "max_new_tokens": reading.max_new_tokens}
    return {
        "made_from": dict(made_from),
        "bank": hashlib.sha256(repr(entries).encode()).hexdigest(),
        "files": {each.name: identity_of(*each.files.values()) for each in entries if each.files},
        "seed": reading.seed,
        **how,
    }


def all_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    entries: Sequence[Entry],
    reading: Reading,
) -> dict[str, list[dict[str, str]]]:
    """Return pairs by name: the model's answers under both instructions, or those of two files."""
    form = chat_prompt_form(tokenizer)
    asked = [
        (entry.name, prompt, side)
        for entry in entries
        for prompt in (entry.prompts if entry.instructions else ())
        for side in SIDES
    ]
    instructions = {entry.name: entry.instructions for entry in entries}
    chats = [
        [{"role": "user", "content": f"{instructions[name][side].strip()}\n\n{prompt}"}]
        for name, prompt, side in asked
    ]
    how = {"max_new_tokens": reading.max_new_tokens, "batch_size": reading.batch_size}
    ids = [form.encode(chat) for chat in chats]
    try:
        texts = generate(model, tokenizer, ids, **how, progress=reading.progress) if ids else []
    except TooLongError as error:
        raise ValueError(f"the bank's answers: {error.facts}. {reading.shorten}") from None
    said = dict(zip(asked, texts, strict=True))
    return {
        entry.name: pairs_of_files(entry)
        if entry.files
        else [
            {
                "prompt": prompt,
                "chosen": said[entry.name, prompt, "positive"],
                "rejected": said[entry.name, prompt, "negative"],
            }
            for prompt in entry.prompts
        ]
        for entry in entries
    }


def _fit_one(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    entry: Entry,
    pairs: Sequence[Mapping[str, str]],
    reading: Reading,
) -> FittedEntry:
    """Fit and measure one direction."""
    rows = _usable(entry, pairs, tokenizer)
    order = np.random.default_rng(reading.seed).permutation(len(rows))
    count = max(1, len(rows) // HELD_OUT_SHARE)
    held_out = rows.select(np.sort(order[:count]))
    fitted_on = rows.select(np.sort(order[count:]))
    reader = Reader(
        model, "responses", "mean", reading.layers, pad_id(tokenizer), reading.max_new_tokens
    )
    how = {"batch_size": reading.batch_size, "state": PartialState()}
    fitted = fit(reader, fitted_on, ("mean",), seed=reading.seed, **how)
    measured = measure(reader, held_out, fitted.vectors, **how)
    described = _described(model, entry, reading)
    described |= {"data_sha256": rows_hash(fitted_on), "contrasts": str(fitted.contrasts)}
    evidence = evidence_of(fitted, measured, reading.layers)
    evidence["made_with"] = described | {"held_out_pairs": len(held_out)}
    directions = Directions(reading.layers, fitted.vectors["mean"], described)
    words = {side: list(listed) for side, listed in entry.words.items()}
    shown = {"about": entry.about, "words": words, "pairs": len(rows)}
    row = {**shown, **_characters(pairs), **_best(evidence)}
    return FittedEntry(directions, evidence, pairs, row)


def _described(model: PreTrainedModel, entry: Entry, reading: Reading) -> dict[str, str]:
    """Return the metadata of a direction."""
    return {
        "model": base_name(model),
        "model_type": model.config.model_type,
        "depth": str(depth_of(model)),
        "data": f"bank: {entry.name}, {entry.about}",
        "source": "responses",
        "tokens": "mean",
        "fit": "mean",
        "seed": str(reading.seed),
        "max_response_tokens": str(reading.max_new_tokens),
    }


def _usable(
    entry: Entry, pairs: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase
) -> Dataset:
    different = [
        pair for pair in pairs if pair["chosen"].strip() and pair["rejected"].strip()
        and pair["chosen"] != pair["rejected"]
    ]  # fmt: skip
    if len(different) < LEAST_PROMPTS:
        named = " and ".join(str(entry.files[side]) for side in SIDES) if entry.files else ""
        cure = "the model does not follow the instructions. Write others, or give files of answers."
        cure = f"{named} hold too few. Give more prompts, answered differently." if named else cure
        raise ValueError(
            f"{entry.name}: only {len(different)} of {len(pairs)} prompts have two different "
            f"answers, and {LEAST_PROMPTS} are needed: {cure}"
        )
    return tokenize_pairs(Dataset.from_list(different), tokenizer)[0]


def _characters(pairs: Sequence[Mapping[str, str]]) -> dict[str, float]:
    return {side: float(np.mean([len(pair[side]) for pair in pairs]))
            for side in ("chosen", "rejected")}  # fmt: skip


def _best(evidence: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of the layer that separates held-out answers best."""
    areas = evidence["separability"]["mean"]
    place = int(np.argmax(areas))
    return {
        "layer": evidence["layers"][place],
        "auc": areas[place],
        "halves": evidence["halves"]["mean"][place],
        "norm": evidence["norm"]["mean"][place],
        "explained": evidence["explained"]["mean"][place],
    }


def bank_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one row a direction, with the evidence in the layer where it is best."""
    header = ["name", "pairs", "characters", "best layer", "held-out AUC", "halves"]
    rows = [
        [
            name,
            str(row["pairs"]),
            f"{row['chosen']:.0f} / {row['rejected']:.0f}",
            str(row["layer"]),
            f"{row['auc']:.2f}",
            f"{row['halves']:.2f}",
            f"{row['norm']:.3f}",
            f"{row['explained']:.2f}",
        ]
        for name, row in found.items()
    ]
    return markdown([*header, "mean / rms", "mean explains"], rows)
