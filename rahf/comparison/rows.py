"""A row of a comparison: how it is trained, and what that took.

Rows are trained by the stages that `rahf align` and `rahf dpo` run. A teacher that several rows or
trials ask for is trained once, and counts in the cost of each of them.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from rahf.artifacts import STAGE_FILE, read_json
from rahf.baselines import run_dpo
from rahf.config import TEACHERS
from rahf.pipeline import run_stage, stage_folder, stage_settings
from rahf.recipe.comparing import RowRun
from rahf.recipe.reading import Recipe


class Trained(NamedTuple):
    """An adapter, and the seconds that its training took, teachers and directions included."""

    adapter: Path
    seconds: float


def train_row(run: RowRun, teachers: Path) -> Trained:
    """Train what is not trained yet.

    Args:
        teachers: folder of the teachers that rows share.
    """
    if run.kind == "sft":
        folder = _teacher(run.recipe, "positive", teachers)
        return Trained(folder, _seconds(folder))
    if run.kind == "dpo":
        run_dpo(run.recipe, run.beta, run.recipe.output_dir)
        return Trained(run.recipe.output_dir, _seconds(run.recipe.output_dir))
    names = TEACHERS[run.recipe.method.method]
    given = {name: getattr(run.recipe.teachers, name) for name in names}
    trained = {name: _teacher(run.recipe, name, teachers) for name in names if given[name] is None}
    paths = {name: str(path) for name, path in trained.items()}
    recipe = dataclasses.replace(
        run.recipe, teachers=dataclasses.replace(run.recipe.teachers, **paths)
    )
    own = [name for name in recipe.stages if name != "evaluation"]
    for name in own:
        run_stage(recipe, name)
    folders = [*trained.values(), *(stage_folder(recipe, name) for name in own)]
    return Trained(recipe.output_dir, sum(map(_seconds, folders)))


def _teacher(recipe: Recipe, name: str, shared: Path) -> Path:
    """The folder of a teacher, which is named by what decides its result."""
    settings = json.dumps(stage_settings(recipe, name), sort_keys=True)
    home = shared / hashlib.sha256(settings.encode()).hexdigest()[:12]
    training = recipe.training | {"output_dir": str(home)}
    recipe = dataclasses.replace(recipe, training=training)
    run_stage(recipe, name)
    return stage_folder(recipe, name)


def _seconds(folder: Path) -> float:
    """Of a stage, from its record; those before a stop are not in it."""
    return read_json(folder / STAGE_FILE)["training"]["train_runtime"]
