"""A row of a comparison: which recipe it is, how it is trained, what that took.

Rows are trained by the stages that `rahf align` and `rahf dpo` run. A teacher that several rows or
trials ask for is trained once, and counts in the cost of each of them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rahf.artifacts import STAGE_FILE, read_json
from rahf.baselines import run_dpo
from rahf.config import TEACHERS
from rahf.pipeline import run_stage, stage_folder, stage_settings
from rahf.recipe.combinations import kind_of_row
from rahf.recipe.reading import Recipe, RecipeError, recipe_from_dict
from rahf.recipe.yaml_file import merge_overrides

UNTRAINED = ("base", "urial")
BETA = 0.1
"""Of DPO, where a row does not say."""


class Trained(NamedTuple):
    """An adapter, and what its training cost, teachers and directions included."""

    adapter: Path
    cost: dict[str, float]  # training_seconds, the sum; peak_memory (bytes), the largest


@dataclasses.dataclass(frozen=True)
class RowRun:
    """One row under one setting and one seed."""

    kind: str
    recipe: Recipe
    beta: float = BETA  # read by dpo alone


def row_run(
    recipe: Recipe, name: str, settings: Mapping[str, Any], seed: int, folder: Path
) -> RowRun:
    """The run of the row `name` into `folder`.

    Raises:
        RecipeError: `settings` do not make a recipe; told with the name of the row.
    """
    kind, settings = kind_of_row(name), {**recipe.compare.rows[name], **settings}
    beta = float(settings.pop("beta", BETA)) if kind == "dpo" else BETA
    given = {key: value for key, value in recipe.as_dict().items() if key != "compare"}
    # The comparison measures all rows itself, and alike.
    given |= {"dataset_test_split": None, "evaluation": {}}
    if kind in ("sft", "dpo"):
        # Their own training is what the keys at the top level say, of the alignment elsewhere.
        given |= {"method": "dual", "teachers": {}, "shift": "token", "directions": None}
    elif kind in TEACHERS:
        given["method"] = kind
        own = given["teachers"]
        given["teachers"] = {
            key: value
            for key, value in own.items()
            if key not in ("positive", "negative", "contrast") or key in TEACHERS[kind]
        }
        if kind == "lorra":
            given["reference"] = "base"
        if kind != "direction":
            given["directions"] = None
    merged, problems = merge_overrides(given, {**settings, "seed": seed, "output_dir": str(folder)})
    if problems:
        raise RecipeError(f"compare: row {name}", problems)
    return RowRun(kind, recipe_from_dict(merged, f"compare: row {name}"), beta)


def train_row(run: RowRun, teachers: Path) -> Trained:
    """Train what is not trained yet.

    Args:
        teachers: folder of the teachers that rows share.
    """
    if run.kind == "sft":
        folder = _teacher(run.recipe, "positive", teachers)
        return Trained(folder, cost_of([folder]))
    if run.kind == "dpo":
        run_dpo(run.recipe, run.beta, run.recipe.output_dir)
        return Trained(run.recipe.output_dir, cost_of([run.recipe.output_dir]))
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
    return Trained(recipe.output_dir, cost_of(folders))


def _teacher(recipe: Recipe, name: str, shared: Path) -> Path:
    """The folder of a teacher, which is named by what decides its result."""
    settings = json.dumps(stage_settings(recipe, name), sort_keys=True)
    home = shared / hashlib.sha256(settings.encode()).hexdigest()[:12]
    training = recipe.training | {"output_dir": str(home)}
    recipe = dataclasses.replace(recipe, training=training)
    run_stage(recipe, name)
    return stage_folder(recipe, name)


def cost_of(folders: Sequence[Path]) -> dict[str, float]:
    """What the stages in `folders` cost together, from their records.

    The peak of memory is left out where one of them does not know its own: it was run by an older
    rahf, or where the system does not tell.
    """
    records = [read_json(folder / STAGE_FILE) for folder in folders]
    cost = {"training_seconds": sum(each["training"]["train_runtime"] for each in records)}
    if all("peak_memory" in each for each in records):
        cost["peak_memory"] = max(each["peak_memory"] for each in records)
    return cost
