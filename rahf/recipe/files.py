"""A recipe against what is on this machine: files, columns, layers, folders.

Knows neither torch nor a GPU, so that a recipe for another machine can be checked here. Reads the
beginning of data files only; every row is checked when the data is loaded.
"""

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rahf.artifacts import expanded
from rahf.data.pairs import check_columns, normalize_row
from rahf.data.records import read_records
from rahf.data.sources import DataSource, local_path, local_splits
from rahf.recipe.data_options import column_problems, part_problems
from rahf.recipe.evaluation_files import evaluation_problems, judge_problems
from rahf.recipe.held_out import HELD_OUT, held_out_split
from rahf.recipe.keys import full_name
from rahf.recipe.model_files import (
    is_local,
    json_object,
    missing_file,
    model_problems,
    teacher_folder_problems,
)
from rahf.recipe.recipe import Recipe, RecipeError, load_recipe
from rahf.recipe.trackers import missing_trackers
from rahf.recipe.training_arguments import TRAINING_DEFAULTS
from rahf.recipe.training_values import CONSTANT

ROWS_READ = 200


def checked_recipe(
    path: str | Path,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    also: Callable[[Recipe], list[str]] = lambda _: [],
) -> Recipe:
    """Run `load_recipe`, `check_files` and the check `also`; raise RecipeError with the problems of
    all three.
    """
    problems: list[str] = []
    try:
        recipe = load_recipe(path, overrides)
    except RecipeError as error:
        problems += error.problems
        recipe = error.partial
    if recipe is not None:
        problems += [*check_files(recipe), *also(recipe)]
    if problems:
        raise RecipeError(str(path), problems, recipe)
    return recipe


def not_read(recipe: Recipe) -> list[str]:
    """Return the keys that are given and have no effect beside another, a line each."""
    found = []
    for section, given in (("", recipe.training), ("teachers", recipe.teachers_training)):
        if "num_train_epochs" in given and given.get("max_steps", -1) > 0:
            key, steps = (full_name(section, n) for n in ("num_train_epochs", "max_steps"))
            found.append(
                f"{key}: {given['num_train_epochs']:g} has no effect beside {steps}: "
                f"{given['max_steps']}, which sets the length of the training: remove one"
            )
        held = recipe.teacher_training if section and given else given
        found += [
            f"{full_name(section, key)}: {given[key]} is not read {why}: remove it"
            for key, why in _without_effect(held).items()
            if given.get(key)
        ]
    return found


def _without_effect(held: Mapping[str, Any]) -> dict[str, str]:
    """Return {key: why} of training keys that have no effect beside these."""
    reasons = {"label_smoothing_factor": "by the losses of rahf"}
    scheduler = held.get("lr_scheduler_type", TRAINING_DEFAULTS["lr_scheduler_type"])
    if scheduler in CONSTANT:
        reasons["lr_scheduler_kwargs"] = f"by lr_scheduler_type: {scheduler}"
    if held.get("use_cpu"):
        reasons |= {"fp16": "on a CPU", "fp16_full_eval": "on a CPU"}
    switches = ("activation_checkpointing", "gradient_checkpointing")
    if not any(held.get(name) for name in switches):
        why = "without activation_checkpointing: true"
        reasons |= {f"{name}_kwargs": why for name in switches}
    return reasons


ON_A_GPU = {
    "fp16": "it needs a GPU; without one it is not read, and the training is in float32",
    "load_in_4bit": "it needs a GPU: without one the run refuses it",
}
"""Keys that this machine may not be able to follow, and what happens then."""


def needs_gpu(recipe: Recipe) -> list[str]:
    """Return the keys whose effect depends on a GPU, which is not looked for; a line each."""
    held = {**recipe.training, "load_in_4bit": recipe.model.load_in_4bit}
    named = {key: held.get(key) for key in ON_A_GPU if not held.get("use_cpu")}
    lines = [f"{key}: true: {ON_A_GPU[key]}" for key, value in named.items() if value]
    teachers = recipe.teachers_training.get("fp16") and not held.get("use_cpu")
    return [*lines, *([f"teachers.fp16: true: {ON_A_GPU['fp16']}"] if teachers else [])]


def check_files(recipe: Recipe) -> list[str]:
    """Return everything in a recipe that does not agree with the files it names."""
    return [
        *_engine_problems(recipe),
        *model_problems(recipe),
        *_data_problems(recipe.data),
        *teacher_folder_problems(recipe),
        *_text_problems(recipe),
        *_output_problems(recipe.training.get("output_dir")),
    ]


def check_named_files(recipe: Recipe) -> list[str]:
    """Return the part of it that needs no look into the pairs: model, teachers, single files."""
    return [*model_problems(recipe), *teacher_folder_problems(recipe), *_text_problems(recipe)]


def _engine_problems(recipe: Recipe) -> list[str]:
    """Return what the recipe needs of this machine's programs and does not find."""
    problems = [
        full_name(section, line)
        for section, given in (("", recipe.training), ("teachers", recipe.teachers_training))
        for line in missing_trackers(given.get("report_to"))
    ]
    if not recipe.training.get("fsdp"):
        return problems
    return [
        *problems,
        "fsdp: not read, since rahf cuts the base itself while it loads it: remove the key and "
        "start with --accelerate_config fsdp2",
    ]


def _data_problems(data: Any) -> list[str]:
    problems, template = [], "{" if data.chat_template is None else data.chat_template
    name = template.replace("-", "_").isidentifier()  # of one of the tokenizer's templates, perhaps
    if not name and "{" not in template and not expanded(template).is_file():
        problems.append(f"chat_template: {template!r} is neither Jinja text nor a file")
    if data.dataset_name is not None:
        columns = None if column_problems("columns", data.columns) else data.columns
        source = DataSource(data.dataset_name, data.dataset_config, columns=columns)
        test = held_out_split(data)
        splits = {
            "dataset_train_split": data.dataset_train_split,
            "dataset_test_split": None if test == HELD_OUT else test,
        }
        problems += _source_problems("dataset_name", source, splits)
    for index, part in enumerate(data.datasets or []):
        if not part_problems(f"datasets[{index}]", part):
            source = DataSource(part["path"], part.get("name"), columns=part.get("columns"))
            splits = {f"datasets[{index}].split": part.get("split", data.dataset_train_split)}
            problems += _source_problems(f"datasets[{index}].path", source, splits)
    return problems


def _source_problems(key: str, source: DataSource, splits: Mapping[str, str | None]) -> list[str]:
    path = expanded(source.path)
    if not is_local(source.path):
        return []
    if not path.exists():
        return [missing_file(key, source.path)]
    try:
        found = local_splits(local_path(source))
    except ValueError as error:
        return [f"{key}: {error}"]
    problems = []
    for split_key, split in splits.items():
        name = (split or "").partition("[")[0]  # "train[:10%]" is a slice of train
        if split is not None and name not in found:
            hint = "; null holds a share out" if split_key == "dataset_test_split" else ""
            problems.append(
                f"{split_key}: {path} has no split {name!r}, it has: {', '.join(found)}{hint}"
            )
        for file in found.get(name, []):
            problems += _rows_problems(key, file, source)
    return problems


def _rows_problems(key: str, path: Path, source: DataSource) -> list[str]:
    """Return problems of the columns, and of the first rows where the format can be read line by
    line.
    """
    if path.is_dir():
        return _saved_problems(key, path, source.columns)
    if path.name.endswith(".parquet"):
        return []
    reasons: list[str | None] = []
    try:
        records = read_records(path, whole_characters=False)
        for place, record in islice(records, ROWS_READ):
            if not reasons:
                mapping = check_columns(list(record), source.columns, place)
            reasons.append(normalize_row(record, mapping, len(reasons), place)["dropped"])
    except ValueError as error:
        return [f"{key}: {error}"]
    if not reasons:
        return [f"{key}: {path} has no rows"]
    if None not in reasons:
        [(reason, count)] = Counter(reasons).most_common(1)
        return [
            f"{key}: {path}: none of the first {len(reasons)} rows can be used; in {count}, "
            f"{reason}"
        ]
    return []


def _saved_problems(key: str, folder: Path, columns: Mapping[str, str] | None) -> list[str]:
    """Return problems of a folder that `datasets` saved."""
    if not (folder / "dataset_info.json").is_file():
        return [f"{key}: {folder} holds no dataset_info.json, so it was not saved completely"]
    try:
        info = json_object(folder / "dataset_info.json")
        check_columns(list(info.get("features") or {}), columns, str(folder))
    except ValueError as error:
        return [f"{key}: {error}"]
    return []


def _text_problems(recipe: Recipe) -> list[str]:
    """Return problems of the other files that a recipe names, and of what they need to be read."""
    method, evaluation, problems = recipe.method, recipe.evaluation, []
    files = {
        "directions": method.directions,
        "retain_dataset_name": method.retain_dataset_name,
        "evaluation.prompts": evaluation.prompts,
        "evaluation.unrelated_text": evaluation.unrelated_text,
        "compare.urial": recipe.compare.urial,
        "deepspeed": recipe.training.get("deepspeed"),
        "accelerator_config": recipe.training.get("accelerator_config"),
    }
    for key, name in files.items():
        if isinstance(name, str):
            problems += _file_problems(key, name)
    answered = evaluation.prompts is not None or evaluation.held_out_prompts
    if answered and evaluation.judge is not None:
        problems += missing_judge("evaluation.judge", evaluation.judge)
    return problems or evaluation_problems(recipe)


def missing_judge(key: str, judge: str | list[str]) -> list[str]:
    """Return what the judges that `key` names need and is not there: words, a model, a file."""
    if isinstance(judge, list):
        return [line for name in judge for line in missing_judge(key, str(name))]
    if judge == "lexicon" and importlib.util.find_spec("vaderSentiment") is None:
        return [
            f'{key}: lexicon needs vaderSentiment: pip install "rahf[judges]", or name another '
            "judge"
        ]
    kind, _, model = judge.partition(":")
    if kind == "references" and not Path(model).is_file():
        return [missing_file(key, model)]
    if kind in ("reward", "choice") and is_local(model) and not Path(model).exists():
        return [missing_file(key, model)]
    return judge_problems(key, judge) if kind in ("references", "reward") else []


def _file_problems(key: str, name: str) -> list[str]:
    path = Path(name)
    if not path.exists():
        return [missing_file(key, name)]
    if path.is_file() and name.endswith((".jsonl", ".jsonl.gz")):
        try:
            rows = sum(1 for _ in islice(read_records(path), ROWS_READ))
        except ValueError as error:
            return [f"{key}: {error}"]
        return [] if rows else [f"{key}: {name} has no rows"]
    return []


def _output_problems(output_dir: Any) -> list[str]:
    if not isinstance(output_dir, str) or not output_dir:
        return []
    path = Path(output_dir).absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        return [f"output_dir: {existing} is a file, so no folder can be made there"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"output_dir: {existing} cannot be written to"]
    return []
