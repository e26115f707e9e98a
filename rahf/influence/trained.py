"""What an adapter was trained on, read from the record that its training left in its folder.

The folder of an alignment (`rahf align`), of DPO (`rahf dpo`) or of a teacher, which is SFT, DPO or
contrastive instruction tuning. Its pairs must be the ones that it was trained on. Knows records and
recipes.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rahf.alignment import Alignment
from rahf.artifacts import (
    RECIPE_FILE,
    STAGE_FILE,
    differences,
    identity_of,
    other_content,
    read_object,
)
from rahf.directions.vectors import Directions
from rahf.influence.aligned import alignment_objective
from rahf.influence.objectives import (
    Objective,
    instruction_objective,
    preference_objective,
    side_objective,
)
from rahf.models.adapter_files import put_adapter
from rahf.models.adapters import pad_id
from rahf.models.packing import use_packed_attention
from rahf.pipeline.inputs import (
    alignment_arguments,
    data_files,
    directions_of,
    load_base,
    load_tokenizer,
    lora_config,
    teachers_of,
    train_rows,
)
from rahf.recipe.methods import DEFAULT_METHOD, METHODS
from rahf.recipe.recipe import Recipe, load_recipe, recipe_from_dict
from rahf.records.stage_record import StageRecord, again
from rahf.training.preparation import prepare

TEACHER_METHODS = {
    teacher: name for name, method in reversed([*METHODS.items()]) for teacher in method.teachers
}
"""A method that trains each teacher."""

ALONE = {"pairs_together": False, "dpo_weight": 0.0, "gradient_accumulation_steps": 1}
"""Keys of a recipe that is read for its teacher or DPO only."""

OF_TEACHERS = ("label_smoothing", "beta")


class Edit(NamedTuple):
    """What a retraining changes of the pairs, by `row`."""

    dropped: frozenset[int] = frozenset()
    flipped: frozenset[int] = frozenset()  # chosen and rejected change sides

    def of(self, rows: Dataset) -> Dataset:
        """Return tokenised pairs without the dropped ones, the flipped ones exchanged."""
        kept = [place for place, row in enumerate(rows["row"][:]) if row not in self.dropped]
        rows = rows.select(kept) if len(kept) < len(rows) else rows
        return rows.map(self._turned, load_from_cache_file=False) if self.flipped else rows

    def _turned(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        sides = ("chosen_ids", "rejected_ids")
        turned = pair["row"] in self.flipped
        return dict(zip(sides, (pair[side] for side in sides[:: -1 if turned else 1]), strict=True))


class Training(NamedTuple):
    """A finished training."""

    folder: Path
    kind: str  # alignment, dpo, or the name of a teacher
    recipe: Recipe
    beta: float  # read by dpo
    unchecked: bool  # whether the record lacks the identity of the pairs, as for data of the Hub
    edit: Edit | None = None  # of a retraining, whose teachers are in its own folder
    original: "Training | None" = None  # that it repeats


class Subject(NamedTuple):
    """A training on its model, ready to be attributed."""

    training: Training
    objective: Objective
    tokenizer: PreTrainedTokenizerBase
    alignment: Alignment | None  # of a training of that kind

    @property
    def rows(self) -> Dataset:
        return self.objective.rows


def read_training(folder: str | Path) -> Training:
    """Return what the adapter in `folder` was trained on and how.

    Raises:
        ValueError: no adapter, no record of its training or an unfinished one; a file that it left
            has changed; the pairs or the base are not those that it was trained on.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds no adapter_config.json: give the folder of an adapter.")
    if not (folder / STAGE_FILE).exists():
        raise ValueError(
            f"{folder} holds no {STAGE_FILE}, the record of what its adapter was trained on and "
            "how, which influence is computed of. Give the output folder of rahf align or rahf "
            "dpo, or of one of their teachers."
        )
    record = read_object(folder / STAGE_FILE, again(folder), complete=bool, settings=dict)
    if not record["complete"]:
        raise ValueError(f"the training in {folder} is not complete: finish it first.")
    if damage := StageRecord(folder, {}).damage():
        raise ValueError(f"{damage}: influence needs the adapter as it was trained. Train again.")
    kind = _kind(folder, record["settings"])
    recipe = _recipe(folder, kind, record["settings"])
    paths = {"model_name_or_path": [recipe.model.model_name_or_path]}
    paths["the pairs"] = data_files(recipe)
    changed = other_content(record, {name: identity_of(*found) for name, found in paths.items()})
    if changed:
        raise ValueError(
            f"{folder} was trained on other content:\n{changed}Influence is that of the pairs that "
            "were trained on: give those, or train again."
        )
    unchecked = record.get("made_from", {}).get("the pairs") is None
    return Training(folder, kind, recipe, record["settings"].get("beta", 0.0), unchecked)


def _kind(folder: Path, settings: Mapping[str, Any]) -> str:
    if "method" in settings:
        return "alignment"
    if folder.resolve().parent.name == "teachers" and folder.name in TEACHER_METHODS:
        return folder.name
    if "beta" in settings:
        return "dpo"
    raise ValueError(
        f"{folder / STAGE_FILE} is not the record of an alignment, DPO or a teacher; a "
        f"teacher's folder is teachers/NAME, where NAME is one of {', '.join(TEACHER_METHODS)}."
    )


def _recipe(folder: Path, kind: str, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a training, whose output is `folder`."""
    if kind == "alignment":
        recipe = load_recipe(folder / RECIPE_FILE)
        _check_recipe(folder, recipe, settings)
        return dataclasses.replace(recipe, training=recipe.training | {"output_dir": str(folder)})
    given = {key: value for key, value in settings.items() if key != "rows_per_step"}
    given |= {"per_device_train_batch_size": settings["rows_per_step"]} | ALONE
    own = {key: given.pop(key) for key in OF_TEACHERS if key in given}
    method = TEACHER_METHODS.get(kind, DEFAULT_METHOD)
    teachers = own if kind in TEACHER_METHODS else {}
    return recipe_from_dict(
        {**given, "method": method, "teachers": teachers, "output_dir": str(folder)}
    )


def _check_recipe(folder: Path, recipe: Recipe, settings: Mapping[str, Any]) -> None:
    """Refuse a recipe file that differs from the record in a key of both.

    The file holds what was chosen where the record holds `auto`.
    """
    recorded = {key: value for key, value in settings.items() if value != "auto"}
    if len(recorded) < len(settings):
        recorded.pop("retain_dataset_name", None)  # may be read by the choice alone
    before, now = _of_both(recorded, json.loads(json.dumps(recipe.as_dict())))
    if changed := differences(before, now):
        raise ValueError(
            f"{folder / RECIPE_FILE} is not the recipe that {folder} was trained with:\n{changed}"
            "Restore it, or train again."
        )


def _of_both(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two mappings without the keys that only one of them has, also in nested ones."""
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for key in one.keys() & other.keys():
        values = (one[key], other[key])
        nested = all(isinstance(value, dict) for value in values)
        found[0][key], found[1][key] = _of_both(*values) if nested else values
    return found


def open_training(training: Training) -> Subject:
    """Load the model, the adapter and the pairs of a training."""
    recipe, kind = training.recipe, training.kind
    tokenizer = load_tokenizer(recipe)
    rows, base = pairs_of(training, tokenizer), load_base(recipe)
    model = put_adapter(base, training.folder, trainable=True)
    model.eval()  # no dropout: a gradient is that of the trained model itself
    pad = pad_id(tokenizer)
    if kind == "alignment":
        return _open_alignment(training, model, tokenizer, rows)
    use_packed_attention(model.get_base_model())
    if kind == "dpo":
        objective = preference_objective(model, rows, pad, training.beta)
    elif kind == "preferred":
        objective = preference_objective(model, rows, pad, recipe.teachers.beta)
    elif kind == "contrast":
        objective = instruction_objective(model, rows, pad, recipe.teachers.label_smoothing)
    else:
        side = {"positive": "chosen", "negative": "rejected"}[kind]
        objective = side_objective(model, rows, pad, side)
    return Subject(training, objective, tokenizer, None)


def pairs_of(training: Training, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return the tokenised pairs that a training reads."""
    step = 1 if training.kind in TEACHER_METHODS else 2
    rows = train_rows(training.recipe, tokenizer, step=step)
    return rows if training.edit is None else training.edit.of(rows)


def check_remaining(training: Training, changed: Mapping[str, float]) -> None:
    """Refuse to change all pairs of a training.

    Args:
        changed: how many pairs, or which share of them, by option.
    """
    count = len(pairs_of(training, load_tokenizer(training.recipe)))
    for option, given in changed.items():
        wanted = given if isinstance(given, int) else max(1, round(given * count))
        if wanted >= count:
            raise ValueError(
                f"{option} {given} changes {wanted} pairs, and the training has {count}: give a "
                "smaller one."
            )


def _open_alignment(training: Training, model, tokenizer, rows: Dataset) -> Subject:
    # Frozen states are not kept: influence reads them once or twice.
    method = dataclasses.replace(training.recipe.method, target_cache=None)
    recipe = dataclasses.replace(training.recipe, method=method)
    args, config = alignment_arguments(recipe), lora_config(recipe)
    directions = directions_of(recipe)
    stored = None if directions is None else Directions.load(directions)
    made = prepare(model, args, rows, tokenizer, config, teachers_of(recipe), stored, None)
    model.eval()
    objective = alignment_objective(made.alignment, rows, tokenizer, made.retained)
    return Subject(training, objective, tokenizer, made.alignment)


def teachers_trained(training: Training) -> dict[str, Training]:
    """Return the trainings of the teachers that an alignment's own run has trained, by name.

    Raises:
        ValueError: one of them has no record.
    """
    if training.kind != "alignment":
        return {}
    if training.original is not None:
        return {
            name: its._replace(folder=training.folder / "teachers" / name, edit=training.edit)
            for name, its in teachers_trained(training.original).items()
        }
    given = teachers_given(training)
    return {
        name: read_training(path)
        for name, path in teachers_of(training.recipe).items()
        if name not in given
    }


def teachers_given(training: Training) -> dict[str, Path]:
    """Return the teachers that an alignment was given, by name: no pair of it has trained them."""
    if training.kind != "alignment":
        return {}
    own, found = training.recipe.stages, teachers_of(training.recipe)
    return {name: Path(path) for name, path in found.items() if name not in own}
