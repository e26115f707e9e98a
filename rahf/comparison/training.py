"""A row of a comparison: its training and what it cost.

Rows are trained by the stages that `rahf align` and `rahf dpo` run. A teacher that several rows or
trials need is trained once, and counts in the cost of each of them; also where several processes
need it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rahf.artifacts import STAGE_FILE, alone, read_object
from rahf.comparison.row_recipes import RowRun
from rahf.pipeline.dpo_baseline import run_dpo
from rahf.pipeline.run import run_stage, stage_folder, stage_settings
from rahf.recipe.recipe import Recipe


class Trained(NamedTuple):
    """An adapter, and what its training cost, teachers and directions included."""

    adapter: Path
    cost: dict[str, float]  # training_seconds, the sum; peak_memory (bytes), the largest


def train_row(run: RowRun, teachers: Path) -> Trained:
    """Train what is not trained yet.

    Args:
        teachers: folder of the teachers that rows share.
    """
    if run.kind == "sft":
        folder = _teacher(run.recipe, "positive", teachers)
        return Trained(folder, cost_of([folder]))
    if run.kind == "dpo":
        with alone(run.recipe.output_dir):
            run_dpo(run.recipe, run.beta, run.recipe.output_dir)
        return Trained(run.recipe.output_dir, cost_of([run.recipe.output_dir]))
    names = run.recipe.method.facts.teachers
    given = {name: getattr(run.recipe.teachers, name) for name in names}
    trained = {name: _teacher(run.recipe, name, teachers) for name in names if given[name] is None}
    paths = {name: str(path) for name, path in trained.items()}
    recipe = dataclasses.replace(
        run.recipe, teachers=dataclasses.replace(run.recipe.teachers, **paths)
    )
    own = [name for name in recipe.stages if name != "evaluation"]
    with alone(recipe.output_dir):
        for name in own:
            run_stage(recipe, name)
    folders = [*trained.values(), *(stage_folder(recipe, name) for name in own)]
    return Trained(recipe.output_dir, cost_of(folders))


def _teacher(recipe: Recipe, name: str, shared: Path) -> Path:
    """Return the folder of a teacher, which is named by what decides its result."""
    settings = json.dumps(stage_settings(recipe, name), sort_keys=True)
    home = shared / hashlib.sha256(settings.encode()).hexdigest()[:12]
    training = recipe.training | {"output_dir": str(home)}
    recipe = dataclasses.replace(recipe, training=training)
    with alone(home):
        run_stage(recipe, name)
    return stage_folder(recipe, name)


def cost_of(folders: Sequence[Path]) -> dict[str, float]:
    """Return what the stages in `folders` cost together, from their records.

    The seconds are those of training and of sampling the retained texts, which records of an older
    rahf lack. The peak of memory is omitted where a record lacks it: an older rahf wrote it, or
    the system does not report memory.
    """
    records = [read_object(folder / STAGE_FILE, training=dict) for folder in folders]
    trainings = [record["training"] for record in records]
    seconds = [each["train_runtime"] + each.get("sampling_seconds", 0) for each in trainings]
    cost = {"training_seconds": sum(seconds)}
    if all("peak_memory" in each for each in records):
        cost["peak_memory"] = max(each["peak_memory"] for each in records)
    return cost
