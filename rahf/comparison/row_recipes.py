"""The rows of a comparison as recipes of their own, and every problem of the section `compare`.

A row is the recipe with other keys, and with one of its trials, if it has some. Knows neither torch
nor a GPU: what would stop a comparison in the middle is reported before it starts.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rahf.recipe.comparison_options import ROW_KINDS, UNTRAINED, CompareOptions, kind_of_row
from rahf.recipe.evaluation_files import compared_judge_problems
from rahf.recipe.fields import Limits, coerce, value_problem
from rahf.recipe.files import check_named_files, missing_judge
from rahf.recipe.held_out import held_out_split
from rahf.recipe.methods import DEFAULT_METHOD, METHODS
from rahf.recipe.recipe import Recipe, RecipeError, recipe_from_dict
from rahf.recipe.shift_options import unread_teacher_keys
from rahf.recipe.yaml_file import merge_overrides

BETA = 0.1
"""DPO's beta where a row does not set it."""

_BETA = Annotated[float, Limits(least=1e-6)]

_MEASURED_ALIKE = "the comparison measures all rows in the same way"
_ONE_BASE = "all rows train the recipe's base"
UNPROTECTED = {"protect": [], "protect_weight": 1.0}
"""Keys of the protection in a row without a shift."""

NOT_OF_A_ROW = {
    "method": "the row's name gives it",
    "seed": "compare.seeds sets it",
    "output_dir": "the comparison has folders of its own",
    "compare": "it is the section itself",
    "model_name_or_path": _ONE_BASE,
    "model_revision": _ONE_BASE,
    "evaluation": _MEASURED_ALIKE,
    "dataset_test_split": _MEASURED_ALIKE,
    "test_share": _MEASURED_ALIKE,
    "eval_strategy": _MEASURED_ALIKE,
    "eval_on_start": _MEASURED_ALIKE,
    "load_best_model_at_end": _MEASURED_ALIKE,
}
"""Keys that no row may set, and why."""


@dataclasses.dataclass(frozen=True)
class RowRun:
    """One row under one setting and one seed."""

    kind: str
    recipe: Recipe
    beta: float = BETA  # only read by dpo


def row_run(
    recipe: Recipe, name: str, settings: Mapping[str, Any], seed: int, folder: Path
) -> RowRun:
    """Return the run of the row `name`, under the settings of a trial, into `folder`.

    Raises:
        RecipeError: the keys do not make a valid recipe.
    """
    kind = kind_of_row(name)
    own, problems = _own_keys({**recipe.compare.rows[name], **settings})
    beta = coerce(own.pop("beta", BETA), _BETA) if kind == "dpo" else BETA
    problems += value_problem("beta", beta, _BETA)
    merged, wrong = merge_overrides(_common(recipe, kind), own)
    problems += [line.removeprefix("--") for line in wrong]
    merged |= {"seed": seed, "output_dir": str(folder)}
    built = None
    try:
        built = recipe_from_dict(merged)
    except RecipeError as error:
        problems += error.problems
        built = error.partial
    if problems:
        raise RecipeError(f"compare: row {name}", problems, built)
    return RowRun(kind, built, beta)


def _own_keys(given: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the keys that a row may set, and a problem for every other key."""
    roots = {key: str(key).partition(".")[0] for key in given}
    problems = [
        f"{key}: cannot be set by a row, {NOT_OF_A_ROW[root]}: remove it"
        for key, root in roots.items()
        if root in NOT_OF_A_ROW
    ]
    problems += [f"{key!r}: a key must be text" for key in given if not isinstance(key, str)]
    own = {
        key: value
        for key, value in given.items()
        if isinstance(key, str) and roots[key] not in NOT_OF_A_ROW
    }
    return own, problems


def _common(recipe: Recipe, kind: str) -> dict[str, Any]:
    """Return what a row of this kind inherits, without the defaults of the recipe's method."""
    method = METHODS.get(kind, METHODS[DEFAULT_METHOD])
    left = {*METHODS[recipe.method.method].defaults, *method.defaults} - recipe.given
    given = {
        key: value
        for key, value in recipe.as_dict().items()
        if key not in NOT_OF_A_ROW and key not in left
    }
    given |= {"model_name_or_path": recipe.model.model_name_or_path}
    given |= {"model_revision": recipe.model.model_revision}
    given |= {"dataset_test_split": None, "test_share": 0.0}
    if kind in ("sft", "dpo"):
        # The keys of the top level are those of their own training, of the alignment in other rows.
        alone = {"shift": "token", "directions": None, "dpo_weight": 0.0, "pairs_together": False}
        return given | {"method": DEFAULT_METHOD, "teachers": {}, **alone, **UNPROTECTED}
    given["method"] = kind
    given["teachers"] = {
        key: value
        for key, value in given["teachers"].items()
        if key not in unread_teacher_keys(kind)
    }
    if method.references == ("base",):
        given["reference"] = "base"
    if not method.reads_directions:
        given["directions"] = None
    return given | (UNPROTECTED if method.pushes_away else {})


def check_given_comparison(recipe: Recipe) -> list[str]:
    """Return `check_comparison` of a recipe that sets a key of `compare`."""
    return [] if recipe.compare == CompareOptions() else check_comparison(recipe)


def check_comparison(recipe: Recipe) -> list[str]:
    """Return the problems of what is compared, each with the name of its row or trial.

    Problems of the recipe itself, which every row would share, are omitted.
    """
    known = set(_problems_of_itself(recipe))
    return [
        *_measuring_problems(recipe),
        *(
            f"{place}: {line}"
            for name, given in recipe.compare.rows.items()
            if isinstance(name, str) and kind_of_row(name) in ROW_KINDS and isinstance(given, dict)
            for place, line in _row_problems(recipe, name)
            if line not in known
        ),
    ]


def _problems_of_itself(recipe: Recipe) -> list[str]:
    given = {key: value for key, value in recipe.as_dict().items() if key != "compare"}
    try:
        recipe_from_dict(given)
    except RecipeError as error:
        return [*error.problems, *check_named_files(recipe)]
    return check_named_files(recipe)


def _measuring_problems(recipe: Recipe) -> list[str]:
    """Return the problems of what rows are measured on, and of the judges."""
    problems = []
    if held_out_split(recipe.data) is None:
        problems.append(
            "compare: rows are measured on held-out pairs, and nothing is held out: set test_share "
            "above 0, or for a single file dataset_train_split: train[:90%] and "
            "dataset_test_split: train[90%:]"
        )
    if recipe.evaluation.unrelated_text is None:
        problems.append(
            "compare: the ability loss is measured on unrelated text: set "
            "evaluation.unrelated_text to a file of records with a `text` each, as in "
            "recipes/data/unrelated.jsonl"
        )
    missing = missing_judge("compare.judge", recipe.compare.judge)
    return [*problems, *(missing or compared_judge_problems(recipe))]


def _row_problems(recipe: Recipe, name: str) -> list[tuple[str, str]]:
    """Return (place, problem) of a row by itself and of each of its trials.

    A problem that all trials share is the row's.
    """
    place = f"compare.rows.{name}"
    if kind_of_row(name) in UNTRAINED:
        keys = ", ".join(map(str, recipe.compare.rows[name]))
        return [(place, f"such a row is not trained, so it reads no keys: remove {keys}")] * bool(
            keys
        )
    trials = recipe.compare.trials.get(name)
    trials = trials if isinstance(trials, list) else []
    tried = {
        f"compare.trials.{name}[{index}]": _run_problems(recipe, name, settings)
        for index, settings in enumerate(trials)
        if isinstance(settings, dict)
    }
    alone = _run_problems(recipe, name, {})
    shared = [line for line in alone if all(line in found for found in tried.values())]
    return [
        *((place, line) for line in shared),
        *((at, line) for at, found in tried.items() for line in found if line not in shared),
    ]


def _run_problems(recipe: Recipe, name: str, settings: Mapping[Any, Any]) -> list[str]:
    try:
        run = row_run(recipe, name, settings, 0, Path("row"))
    except RecipeError as error:
        return [*error.problems, *(check_named_files(error.partial) if error.partial else ())]
    return check_named_files(run.recipe)
