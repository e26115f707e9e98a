"""`rahf sweep`: a recipe at every point of a grid, resumable, with one table of the results.

A point is a run of its own in a folder of its own; teachers that no axis touches are trained once.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState

from rahf.artifacts import METRICS_FILE, read_object, write_text
from rahf.pipeline.inputs import teachers_of
from rahf.pipeline.run import run_pipeline, run_stage
from rahf.pipeline.stages import output_of_one_run
from rahf.recipe.files import checked_recipe
from rahf.recipe.recipe import Recipe
from rahf.records.command_line import write_result
from rahf.records.makers import refuse_other_maker
from rahf.report.sweep import heat_map, sweep_table

TOUCH_NO_TEACHER = (
    *("alpha", "target_layers", "positions", "tail_tokens", "distance", "layer_scale", "shift"),
    *("max_response_tokens", "response_source", "mean_responses", "kl_weight", "sft_weight"),
    *("align_weight", "retain_weight", "retain_rows", "retain_tokens", "kl_rows", "kl_budget"),
    *("rejected_weight", "chosen_weight", "similarity_weight"),
    *("dpo_weight", "dpo_beta", "weights_over_time"),
)
"""Keys that only the alignment reads: a sweep over them has one set of teachers."""


class Grid(NamedTuple):
    """What is varied, and what is the same for every point."""

    axes: dict[str, list[str]]
    fixed: list[str]

    def points(self) -> list[dict[str, str]]:
        return [
            dict(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())
        ]


def read_grid(overrides: Sequence[str]) -> Grid:
    """Return overrides as a grid: several values, `--alpha 1,2,5`, are an axis; a YAML list is one.

    Raises:
        ValueError: nothing is varied; an override without a value; a key or a value twice.
    """
    axes, fixed, waiting = {}, [], list(overrides)
    while waiting:
        name, given, value = waiting.pop(0).partition("=")
        if not given:
            if not name.startswith("--") or not waiting:
                raise ValueError(f"{name}: give every key with its value or values: --alpha 1,2,5")
            value = waiting.pop(0)
        values = [part.strip() for part in value.split(",")]
        key = name.removeprefix("--")
        if key in axes or name in fixed[::2]:
            raise ValueError(f"{name} is given twice: give all its values at once, {name} 1,2,5")
        if len(values) > 1 and not value.lstrip().startswith(("[", "{")):
            if len(set(map(_read, values))) < len(values):
                raise ValueError(f"{name} {value}: a value is given twice; give each one once")
            axes[key] = values
        else:
            fixed += [name, value]
    if not axes:
        raise ValueError("nothing is varied: give at least one key several values, --alpha 1,2,5")
    return Grid(axes, fixed)


def _read(value: str) -> float | str:
    """Return a number as a number, so that 1 and 1.0 are the same."""
    try:
        return float(value)
    except ValueError:
        return value


def sweep(path: Path, overrides: Sequence[str]) -> None:
    """Run every point that is not complete, print the table, write table and heat map.

    Raises:
        ValueError: the recipe is wrong at some point; raised before anything is run.
    """
    grid = read_grid(overrides)
    whole = checked_recipe(path, grid.fixed)
    shared = set(grid.axes) <= set(TOUCH_NO_TEACHER)
    recipes = {}
    for point in grid.points():
        given = [part for key, value in point.items() for part in (f"--{key}", value)]
        folder = whole.output_dir / "sweep" / point_name(point)
        recipes[folder] = checked_recipe(path, [*grid.fixed, *given, "--output_dir", str(folder)])
    results, home = [], whole.output_dir / "sweep"
    refuse_other_maker(home, "rahf sweep")
    with output_of_one_run(home, whole.training.get("use_cpu", False)):
        for (folder, recipe), point in zip(recipes.items(), grid.points(), strict=True):
            if shared:
                recipe = with_teachers(recipe, whole)
            run_pipeline(recipe, quiet=True)
            figures = point_figures(read_object(folder / METRICS_FILE))
            results.append({"point": point, "results": figures})
            if PartialState().is_main_process:
                _save(results, grid, home)
    PartialState().print(f"{sweep_table(results)}\n\nresults: {home}")


def point_name(point: Mapping[str, str]) -> Path:
    """Return the folder of a point, inside that of the sweep; `/` in a value makes folders in it.

    Raises:
        ValueError: a value leads out of the sweep's folder.
    """
    name = Path(",".join(f"{key}={value}" for key, value in point.items()))
    if ".." in name.parts:
        raise ValueError(
            f"sweep: {str(name)!r} is to be the folder of a run, and .. leads out of it: give a "
            "path without .. in it"
        )
    return name


def with_teachers(recipe: Recipe, whole: Recipe) -> Recipe:
    """Return the recipe with the teachers of the sweep, and train those that are missing."""
    paths = {name: str(path) for name, path in teachers_of(whole).items()}
    for name in paths:
        if name in whole.stages:
            run_stage(whole, name)
    return dataclasses.replace(recipe, teachers=dataclasses.replace(recipe.teachers, **paths))


def point_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a run that the table shows."""
    policy = metrics.get("models", {}).get("policy", {})
    found = {
        "preference accuracy": metrics.get("eval_preference/accuracies"),
        "margin": metrics.get("eval_preference/margins"),
        "reached": metrics.get("eval_repr/reached"),
        "judged mean": policy.get("judged_mean"),
        "loss on unrelated text": policy.get("unrelated_loss"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _save(results: list[dict[str, Any]], grid: Grid, folder: Path) -> None:
    write_result(folder / "results.json", "rahf sweep", {"points": results})
    write_text(folder / "results.md", sweep_table(results) + "\n")
    heat_map(results, grid.axes, folder / "results.png")
