"""Repeat a training on other pairs: without some, or with some flipped.

Every stage that the training's own run has trained is trained again by the project's trainers, with
the same settings. A finished retraining is found in its folder and not repeated where its record
equals what is asked for now; any other is trained again in its place.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from rahf.artifacts import identity_of, read_json, write_json
from rahf.directions.vectors import Directions
from rahf.influence.trained import TEACHER_METHODS, Edit, Training, pairs_of, teachers_trained
from rahf.pipeline.inputs import (
    QUIET_DEFAULTS,
    alignment_arguments,
    load_base,
    load_tokenizer,
    lora_config,
    teachers_of,
)
from rahf.pipeline.run import stage_sources
from rahf.recipe.recipe import Recipe
from rahf.trainer import RAHFTrainer
from rahf.training.checkpoints import ADAPTER_FILE, PREFIX
from rahf.training.target_cache import digest_of_rows
from rahf.training.teachers import TEACHER_DEFAULTS, train_teacher
from rahf.training.trl_dpo import train_dpo

RECORD_FILE = "retraining.json"
FACTORS_FOLDER = "influence"  # of a retraining that is attributed itself

ALONE = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "disable_tqdm": True}
ALONE |= {"load_best_model_at_end": False, "logging_strategy": "no"}
"""Arguments of a retraining: nothing is kept or measured on the way."""


def retrain(training: Training, edit: Edit, folder: Path, seed: int) -> Training:
    """Return the training repeated into `folder` on edited pairs.

    Args:
        seed: of the order of the pairs and of what is new in the adapter.
    """
    recipe = training.recipe
    changed = recipe.training | ALONE | {"output_dir": str(folder), "seed": seed}
    recipe = dataclasses.replace(recipe, training=changed)
    again = training._replace(folder=folder, recipe=recipe, edit=edit, original=training)
    tokenizer = load_tokenizer(recipe)
    for name, teacher in teachers_trained(again).items():
        its = teacher.recipe.training | ALONE | {"seed": seed}
        teacher_recipe = dataclasses.replace(teacher.recipe, training=its)
        _train(teacher._replace(recipe=teacher_recipe), name, tokenizer)
    _train(again, training.kind, tokenizer)
    return again


def _train(training: Training, kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    rows, recipe = pairs_of(training, tokenizer), training.recipe
    record, folder = _record(training, kind, rows), training.folder
    path, state = folder / RECORD_FILE, PartialState()
    if (folder / ADAPTER_FILE).exists() and path.exists() and read_json(path) == record:
        return
    state.wait_for_everyone()
    if state.is_main_process:
        path.unlink(missing_ok=True)
        for left in (folder / FACTORS_FOLDER, *folder.glob(f"{PREFIX}*")):  # of another retraining
            shutil.rmtree(left, ignore_errors=True)
    state.wait_for_everyone()
    if kind == "dpo":
        arguments = {**_arguments(recipe), "beta": training.beta}
        made = (load_base(recipe), rows, tokenizer, lora_config(recipe))
        train_dpo(*made, training.folder, arguments)
    elif kind in TEACHER_METHODS:
        _train_teacher(training, kind, rows, tokenizer)
    else:
        _train_alignment(training, rows, tokenizer)
    if state.is_main_process:
        write_json(path, record)


def _record(training: Training, kind: str, rows: Dataset) -> dict[str, Any]:
    """Return all that decides what a retraining comes to."""
    recipe, edit, original = training.recipe, training.edit or Edit(), training.original
    sources = stage_sources(recipe, kind)
    if "directions" in recipe.stages:  # the retraining fits them itself
        sources.pop("directions", None)
    record = {
        "kind": kind,
        "dropped": sorted(edit.dropped),
        "flipped": sorted(edit.flipped),
        "pairs": digest_of_rows(rows),
        "adapter": original and identity_of(original.folder / ADAPTER_FILE),
        "made_from": {name: identity_of(*paths) for name, paths in sources.items()},
        "beta": training.beta,
        "settings": recipe.as_dict() | {"output_dir": None},
    }
    return json.loads(json.dumps(record, default=str))


def _arguments(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.training.items() if key != "output_dir"}


def _train_teacher(
    training: Training, name: str, rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = training.recipe
    given = {**QUIET_DEFAULTS, **TEACHER_DEFAULTS, **_arguments(recipe)}
    args = TrainingArguments(output_dir=str(training.folder), **given)
    how = (recipe.teachers.label_smoothing, recipe.teachers.beta, recipe.method.packing)
    train_teacher(name, load_base(recipe), rows, tokenizer, lora_config(recipe), args, *how)


def _train_alignment(training: Training, rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Train the alignment; a mean shift is fitted again on its pairs, and kept."""
    recipe = training.recipe
    args, method = alignment_arguments(recipe), recipe.method
    made = (load_base(recipe), args, rows, None, tokenizer, lora_config(recipe))
    trainer = RAHFTrainer(*made, teachers_of(recipe), method.directions)
    trainer.train()
    fitted = trainer.alignment.directions
    if "directions" in recipe.stages and fitted is not None:
        layers, made_with = trainer.alignment.layers, {"fit": "mean"}
        Directions(layers, fitted.cpu(), made_with).save(training.folder / "directions")
    trainer.save_model(_internal_call=True)  # without card and chart
