"""The stage `choice`: what a recipe leaves to the data (`target_layers: auto`, `alpha: auto`); and
whether the policy keeps to the budget that its strength was solved for.

Loads and saves; the idea is in `reading.choice`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rahf.alignment import build_alignment
from rahf.artifacts import read_json, write_json, write_text
from rahf.data.tokenization import tokenize_texts
from rahf.directions.calibration import (
    Calibration,
    Choice,
    NeutralText,
    choose,
    strength_within,
    windows,
)
from rahf.directions.evidence import measure
from rahf.directions.states import Reader
from rahf.directions.vectors import Directions
from rahf.evaluation.strengths import at_strength
from rahf.generation.answers import pad_id, sample_texts
from rahf.models.adapters import depth_of, frozen_pass
from rahf.pipeline.inputs import load_base, load_tokenizer, lora_config, teachers_of, train_rows
from rahf.recipe.config import MethodOptions, resolve_layers
from rahf.recipe.recipe import AUTO, Recipe
from rahf.report.directions import choice_table
from rahf.trainer_config import RAHFConfig
from rahf.training.preparation import fit_mean_shift

CHOICE_FILE = "choice.json"
HELD_OUT = 16  # pairs that windows are compared on
NEUTRAL = 8  # texts that the divergence is measured on


def with_choice(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with what was chosen in the place of `auto`."""
    if not recipe.method.chooses:
        return recipe
    taken = read_json(folder / CHOICE_FILE)["taken"]
    method = decided(recipe.method, target_layers=taken["layers"], alpha=taken["alpha"])
    return dataclasses.replace(recipe, method=method)


def decided(method: MethodOptions, **values: Any) -> MethodOptions:
    """The options with numbers, and without a file of texts that only the choice has read."""
    if not method.reads_retained:
        values["retain_dataset_name"] = None
    return dataclasses.replace(method, **values)


def run_choice(recipe: Recipe, folder: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    """Choose, print the reasons and save them.

    Args:
        defaults: training arguments where the recipe gives none.
    """
    tokenizer = load_tokenizer(recipe)
    base, rows = load_base(recipe), train_rows(recipe, tokenizer, step=2)
    neutral = neutral_texts(recipe, base, tokenizer)
    choice, directions = make_choice(recipe, base, tokenizer, rows, neutral, defaults)
    made_with = {"reference": recipe.method.reference, "neutral": neutral}
    _save(choice, directions.only(choice.taken.layers), made_with, folder)
    return {}


class Kept(NamedTuple):
    """A policy beside the budget that its alpha was solved for."""

    strength: float  # factor on its update that keeps it within the budget; 1 where it is
    divergence: float  # from the base on the choice's neutral text at that strength, nats per token
    budget: float


def kept_to_choice(policy: PeftModel, pad_token_id: int, folder: Path) -> Kept | None:
    """A trained policy beside the budget of the choice in `folder`, which is told; None where no
    alpha was solved for, or where the policy did not begin as the base.
    """
    path = folder / CHOICE_FILE
    choice = read_json(path) if path.exists() else {}
    if not choice.get("solved") or choice["reference"] != "base":
        return None
    kept = kept_to_budget(policy, choice["neutral"], choice["budget"], pad_token_id)
    told = f"KL on neutral text: {kept.divergence:.3g} nats per token, budget {kept.budget:g}"
    if kept.strength < 1:
        told += f"; the adapter is scaled by {kept.strength:.3f} to keep to it"
    PartialState().print(told)
    return kept


def kept_to_budget(
    policy: PeftModel, neutral: Sequence[list[int]], budget: float, pad_token_id: int
) -> Kept:
    """The strength at which a policy keeps to the budget on the texts `neutral` (ids)."""
    with frozen_pass(policy, None):
        text = NeutralText(policy, neutral, pad_token_id)

    def divergence(strength: float) -> float:
        with at_strength(policy, strength):
            return text.divergence()

    return Kept(*strength_within(divergence, budget), budget)


def make_choice(
    recipe: Recipe,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    neutral: Sequence[list[int]],
    defaults: dict[str, Any],
) -> tuple[Choice, Directions]:
    """What is chosen, on some of `rows` that are held out of the fit, and the shift that was fitted
    in every layer. `base` is left as it was.

    Args:
        neutral: ids of the texts that the divergence is measured on.
        defaults: training arguments where the recipe gives none.
    """
    method = recipe.method
    depth = depth_of(base)
    whole = decided(method, target_layers=f"0-{depth - 1}", alpha=1.0)
    stored = Directions.load(method.directions) if method.directions is not None else None
    if stored is not None:
        whole = dataclasses.replace(whole, target_layers=list(stored.layers))
    options = dataclasses.asdict(whole)
    args = RAHFConfig(**{**defaults, **options, **recipe.training})
    order = np.random.default_rng(args.seed).permutation(len(rows))
    count = min(HELD_OUT, len(rows) // 2)
    held_out, fitted_on = rows.select(order[:count]), rows.select(np.sort(order[count:]))
    alignment = build_alignment(base, args, lora_config(recipe), teachers_of(recipe), stored)
    directions = stored or fit_mean_shift(alignment, fitted_on, tokenizer, args)
    with frozen_pass(alignment.model, None if method.reference == "base" else method.reference):
        areas, rms = _evidence(alignment.model, directions, held_out, args, pad_id(tokenizer))
        calibration = Calibration(
            alignment.model,
            held_out.to_list(),
            neutral,
            pad_id(tokenizer),
        )
        choice = choose(
            calibration,
            directions,
            areas,
            rms,
            tried_layers(recipe, depth, directions),
            alpha=None if method.alpha == AUTO else float(method.alpha),
            budget=method.kl_budget,
        )
    alignment.model.unload()
    return choice, directions


def tried_layers(recipe: Recipe, depth: int, directions: Directions) -> list[tuple[int, ...]]:
    """Windows of the depth that the directions cover, or the layers that the recipe gives.

    Raises:
        ValueError: stored directions cover none of the windows.
    """
    if recipe.method.target_layers != AUTO:
        return [resolve_layers(recipe.method.target_layers, depth)]
    covered = [each for each in windows(depth) if set(each) <= set(directions.layers)]
    if not covered:
        raise ValueError(
            f"target_layers: auto compares windows such as {windows(depth)[-1]}, but the "
            f"directions hold layers {list(directions.layers)}; give target_layers."
        )
    return covered


def neutral_texts(recipe: Recipe, model, tokenizer) -> list[list[int]]:
    """Texts of the retain term's file, or what the model writes by itself."""
    method = recipe.method
    if method.retain_dataset_name:
        return tokenize_texts(method.retain_dataset_name, tokenizer, NEUTRAL, method.retain_tokens)
    seed = recipe.training.get("seed", 42)
    return sample_texts(model, tokenizer, rows=NEUTRAL, tokens=method.retain_tokens, seed=seed)


def _evidence(
    model, directions: Directions, held_out, args: RAHFConfig, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """AUC of the shift on held-out responses, and the residual's RMS, per layer."""
    layers = directions.layers
    reader = Reader(model, "responses", "mean", layers, pad_token_id, args.max_response_tokens)
    measured = measure(
        reader,
        held_out,
        {"shift": directions.vectors},
        batch_size=args.per_device_train_batch_size,
        state=PartialState(),
    )
    return torch.tensor(measured.separability["shift"]), measured.rms


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
