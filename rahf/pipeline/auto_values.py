"""The stage `choice`: layers and alpha in place of `auto` in a recipe.

Loads and saves; the idea is in `directions.calibration`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rahf.alignment import build_alignment
from rahf.artifacts import CHOICE_FILE, read_object, write_json, write_text
from rahf.data.tokenization import tokenize_texts
from rahf.directions.calibration import (
    Calibration,
    Choice,
    choose,
    windows_within,
)
from rahf.directions.evidence import measure
from rahf.directions.states import Reader
from rahf.directions.vectors import Directions
from rahf.generation.answers import sample_texts
from rahf.models.adapters import depth_of, frozen_pass, pad_id
from rahf.pipeline.inputs import (
    alignment_arguments,
    load_base,
    load_tokenizer,
    lora_config,
    teachers_of,
    train_rows,
)
from rahf.recipe.layers import AUTO
from rahf.recipe.recipe import Recipe
from rahf.report.directions import choice_table
from rahf.training.preparation import fit_mean_shift

HELD_OUT = 16  # pairs that windows are compared on
NEUTRAL = 8  # texts that the divergence is measured on


def with_choice(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with the chosen values in place of `auto`."""
    if not recipe.method.chooses:
        return recipe
    taken = read_object(folder / CHOICE_FILE, taken=dict)["taken"]
    return decided(recipe, target_layers=taken["layers"], alpha=taken["alpha"])


def decided(recipe: Recipe, **values: Any) -> Recipe:
    """Return the recipe with numbers for `auto`, without a file that only the choice reads."""
    if not recipe.method.reads_retained:
        values["retain_dataset_name"] = None
    return dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, **values))


def run_choice(recipe: Recipe, folder: Path) -> None:
    """Choose, print the reasons and save them."""
    tokenizer = load_tokenizer(recipe)
    base, rows = load_base(recipe), train_rows(recipe, tokenizer, step=2)
    neutral = neutral_texts(recipe, base, tokenizer)
    choice, directions = make_choice(recipe, base, tokenizer, rows, neutral)
    made_with = {"reference": recipe.method.reference, "neutral": neutral}
    _save(choice, directions.only(choice.taken.layers), made_with, folder)


def make_choice(
    recipe: Recipe,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    neutral: Sequence[list[int]],
) -> tuple[Choice, Directions]:
    """Return the choice on held-out rows, and the shift of every layer, fitted on the other rows.

    `base` is left as it was.

    Args:
        neutral: ids of the texts that the divergence is measured on.
    """
    stored = Directions.load(recipe.method.directions) if recipe.method.directions else None
    if stored:
        stored.check_model(base.config.get_text_config().hidden_size, depth_of(base))
    layers = list(stored.layers) if stored else f"0-{depth_of(base) - 1}"
    args = alignment_arguments(decided(recipe, target_layers=layers, alpha=1.0))
    order = np.random.default_rng(args.seed).permutation(len(rows))
    count = min(HELD_OUT, len(rows) // 2)
    held_out, fitted_on = rows.select(order[:count]), rows.select(np.sort(order[count:]))
    alignment = build_alignment(base, args, lora_config(recipe), teachers_of(recipe), stored)
    fitted = None if stored else fit_mean_shift(alignment, fitted_on, tokenizer, args)
    directions = fitted or alignment.freed(stored)
    reference = None if recipe.method.reference == "base" else recipe.method.reference
    reader = Reader(
        alignment.model,
        "responses",
        "mean",
        directions.layers,
        pad_id(tokenizer),
        args.max_response_tokens,
    )
    with frozen_pass(alignment.model, reference):
        batch_size = args.per_device_train_batch_size
        choice = _chosen(recipe, reader, directions, held_out, neutral, batch_size)
    alignment.model.unload()
    return choice, directions


def _chosen(
    recipe: Recipe,
    reader: Reader,
    directions: Directions,
    held_out: Dataset,
    neutral: Sequence[list[int]],
    batch_size: int,
) -> Choice:
    """Compare the windows that the recipe leaves open, by the shift of every layer."""
    method, vectors = recipe.method, {"shift": directions.vectors}
    evidence = measure(reader, held_out, vectors, batch_size=batch_size, state=PartialState())
    return choose(
        Calibration(reader.model, held_out.to_list(), neutral, reader.pad_token_id),
        directions,
        torch.tensor(evidence.separability["shift"]),
        evidence.rms,
        windows_within(
            depth_of(reader.model),
            directions.layers,
            None if method.target_layers == AUTO else method.target_layers,
        ),
        alpha=None if method.alpha == AUTO else float(method.alpha),
        budget=method.kl_budget,
    )


def neutral_texts(recipe: Recipe, model, tokenizer) -> list[list[int]]:
    """Return texts of the retain term's file, or samples of the model."""
    method = recipe.method
    if method.retain_dataset_name:
        return tokenize_texts(method.retain_dataset_name, tokenizer, NEUTRAL, method.retain_tokens)
    seed, quiet = recipe.training_value("seed"), recipe.training.get("disable_tqdm", False)
    return sample_texts(
        model,
        tokenizer,
        rows=NEUTRAL,
        tokens=method.retain_tokens,
        seed=seed,
        progress=PartialState().is_main_process and not quiet,
    )


def _save(
    choice: Choice, directions: Directions, made_with: Mapping[str, Any], folder: Path
) -> None:
    state, table = PartialState(), choice_table(choice.as_dict())
    state.print(table)
    if state.is_main_process:
        directions.save(folder)
        write_json(folder / CHOICE_FILE, choice.as_dict() | made_with)
        write_text(folder / "choice.md", table + "\n")
    state.wait_for_everyone()
