"""A placebo of an adapter: the same training on the same pairs, with their sides drawn at random.

What it changes is what any such training changes, whatever the pairs prefer. Builds and runs the
stages of the adapter's own recipe, teachers included.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from rahf.artifacts import METRICS_FILE, RECIPE_FILE, read_object, write_lines
from rahf.data.pairs import whole_pair
from rahf.pipeline.dpo_baseline import run_dpo
from rahf.pipeline.inputs import load_split
from rahf.pipeline.run import run_stage
from rahf.pipeline.stages import output_of_one_run
from rahf.recipe.methods import DEFAULT_METHOD
from rahf.recipe.recipe import Recipe, load_recipe, recipe_from_dict

DPO_READS_NOT = {
    "method": DEFAULT_METHOD,
    "teachers": {},
    "shift": "token",
    "directions": None,
    "protect": [],
    "protect_weight": 1.0,
    "dpo_weight": 0.0,
    "pairs_together": False,
}
"""Keys of a recipe that the baseline DPO does not read, at values that need nothing."""


class Training(NamedTuple):
    """How an adapter was trained."""

    recipe: Recipe
    beta: float | None  # of the baseline DPO; None: the recipe's own method


def training_of(adapter: Path) -> Training:
    """Return how an adapter was trained, from the files beside it.

    Raises:
        ValueError: no run of rahf has left them there.
    """
    if (adapter / RECIPE_FILE).is_file():
        return Training(load_recipe(adapter / RECIPE_FILE), None)
    metrics = adapter / METRICS_FILE
    settings = dict(read_object(metrics).get("settings") or {}) if metrics.is_file() else {}
    if settings.get("method") != "dpo":
        raise ValueError(
            f"{adapter} holds no {RECIPE_FILE}, so its training cannot be repeated on shuffled "
            "pairs: train a placebo yourself and give its folder."
        )
    beta = settings.pop("beta")
    return Training(recipe_from_dict(_alone(settings) | DPO_READS_NOT), beta)


def _alone(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a training without what is measured after it."""
    return {key: value for key, value in settings.items() if key not in ("evaluation", "compare")}


def train_placebo(adapter: Path, folder: Path, seed: int) -> Path:
    """Train a placebo of `adapter` in `folder`, unless it is there; return its folder.

    Raises:
        ValueError: the adapter's training is not known, or reads directions that were fitted to
            the pairs as they are.
    """
    recipe, beta = training_of(adapter)
    if recipe.method.directions is not None:
        raise ValueError(
            f"{adapter} was aligned along {recipe.method.directions}, which were fitted to the "
            "pairs as they are: fit directions to shuffled pairs, train a placebo along them, and "
            "give its folder."
        )
    pairs, trained = folder / "pairs", folder / "adapter"
    if not (pairs / "train.jsonl").exists():
        pairs.mkdir(parents=True, exist_ok=True)
        split = load_split(recipe, recipe.data.dataset_train_split)
        write_lines(pairs / "train.jsonl", list(shuffled(split, seed)))
    placebo = _on(recipe, pairs, trained)
    with output_of_one_run(trained, placebo.training.get("use_cpu", False)):
        if beta is not None:
            run_dpo(placebo, beta, trained)
            return trained
        for name in placebo.stages:
            if name != "evaluation":
                run_stage(placebo, name)
    return trained


def shuffled(pairs: Dataset, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the pairs, the sides of each in an order that is drawn."""
    swapped = np.random.default_rng(seed).random(len(pairs)) < 0.5
    for row, swap in zip(pairs, swapped.tolist(), strict=True):
        if row.get("dropped") is None:
            pair = whole_pair(row)
            sides = (pair.rejected, pair.chosen) if swap else (pair.chosen, pair.rejected)
            yield {"prompt": pair.prompt, "chosen": [sides[0]], "rejected": [sides[1]]}


def _on(recipe: Recipe, pairs: Path, output: Path) -> Recipe:
    """Return the recipe on other pairs; all its teachers are trained on them too."""
    given = _alone(recipe.as_dict())
    teachers = dict.fromkeys(recipe.method.facts.teachers)
    given["teachers"] = {**given["teachers"], **teachers}
    chooses = "choice" in recipe.stages
    return recipe_from_dict(
        given
        | {"dataset_name": str(pairs), "dataset_config": None, "datasets": None, "columns": None}
        | {"dataset_train_split": "train", "dataset_test_split": None}
        | {"test_share": recipe.data.test_share if chooses else 0.0, "output_dir": str(output)}
    )
