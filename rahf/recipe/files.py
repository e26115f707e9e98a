"""A recipe against what is on this machine: files, columns, layers, folders.

Knows neither torch nor a GPU, so that a recipe for another machine can be checked here. Reads the
beginning of data files only; every row is checked when the data is loaded.
"""

import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rahf.data.pairs import check_columns, normalize_row
from rahf.data.records import read_records
from rahf.data.sources import FILE_SUFFIXES, DataSource, local_path, local_splits
from rahf.models.shapes import KNOWN, read_decoder, read_lora
from rahf.recipe.data_options import column_problems, part_problems
from rahf.recipe.layers import resolve_layers
from rahf.recipe.methods import METHODS
from rahf.recipe.recipe import Recipe, RecipeError, load_recipe

ROWS_READ = 200

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def checked_recipe(
    path: str | Path,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    also: Callable[[Recipe], list[str]] = lambda _: [],
) -> Recipe:
    """`load_recipe`, `check_files` and the check `also`: raises RecipeError with the problems of
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


def check_files(recipe: Recipe) -> list[str]:
    """Everything in a recipe that does not agree with the files it names."""
    return [
        *_engine_problems(recipe),
        *_model_problems(recipe),
        *_data_problems(recipe.data),
        *_teacher_problems(recipe),
        *_text_problems(recipe),
        *_output_problems(recipe.training.get("output_dir")),
    ]


def check_named_files(recipe: Recipe) -> list[str]:
    """The part of it that needs no look into the pairs: model, teachers, single files."""
    return [*_model_problems(recipe), *_teacher_problems(recipe), *_text_problems(recipe)]


def is_local(name: str) -> bool:
    """Whether a name means a path on this machine and not a repository on the Hub.

    `data/pairs` could be either: it is a path when it exists, or when the folder `data` does.
    """
    path = Path(name).expanduser()
    if path.exists() or not _HUB_ID.fullmatch(name) or name.endswith(FILE_SUFFIXES):
        return True
    return len(path.parts) == 2 and Path(path.parts[0]).is_dir()


def model_depth(folder: Path) -> int | None:
    """Number of decoder blocks in a model's config.json; None where it has no known key for it."""
    config = _model_config(folder)
    return next((config[key] for key in _DEPTH_KEYS if key in config), None)


def _model_config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("text_config") or config


def missing_file(key: str, path: str | Path) -> str:
    return f"{key}: {path} does not exist (looked from {Path.cwd()})"


def _engine_problems(recipe: Recipe) -> list[str]:
    if not recipe.training.get("fsdp"):
        return []
    return [
        "fsdp: not read, since rahf cuts the base itself while it loads it: remove the key and "
        "start with --accelerate_config fsdp2"
    ]


def _model_problems(recipe: Recipe) -> list[str]:
    name = recipe.model.model_name_or_path
    folder = Path(name)
    if not is_local(name):
        return []
    if not folder.exists():
        return [missing_file("model_name_or_path", name)]
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return [f"model_name_or_path: {name} is an adapter: give the model that it was trained on"]
    if not (folder / "config.json").is_file():
        return [f"model_name_or_path: {name} holds no config.json, so it is not a model's folder"]
    try:
        depth = model_depth(folder)
        if depth is not None:
            resolve_layers(recipe.method.target_layers, depth)
    except json.JSONDecodeError as error:
        return [f"model_name_or_path: {name}/config.json, line {error.lineno}: not JSON"]
    except ValueError as error:
        # A specification without meaning has been reported with the method's options.
        return [str(error)] if "blocks, counted from 0:" in str(error) else []
    return _module_problems(recipe.model, _model_config(folder))


def _module_problems(model: Any, config: Mapping[str, Any]) -> list[str]:
    """Modules that no block has; those of a family that is not known here are left to the run."""
    if model.lora_target_modules is None or config.get("model_type") not in KNOWN:
        return []
    try:
        decoder = read_decoder(config, model.model_name_or_path)
        read_lora(decoder, model.lora_r, model.lora_dropout, model.lora_target_modules)
    except ValueError as error:
        # A size that config.json leaves out is no business of this check.
        return [str(error)] if str(error).startswith("lora_target_modules") else []
    return []


def _data_problems(data: Any) -> list[str]:
    problems, template = [], data.chat_template
    if template is not None and "{" not in template and not Path(template).expanduser().is_file():
        problems.append(f"chat_template: {template!r} is neither Jinja text nor a file")
    if data.dataset_name is not None:
        columns = None if column_problems("columns", data.columns) else data.columns
        source = DataSource(data.dataset_name, data.dataset_config, columns=columns)
        splits = {
            "dataset_train_split": data.dataset_train_split,
            "dataset_test_split": data.dataset_test_split,
        }
        problems += _source_problems("dataset_name", source, splits)
    for index, part in enumerate(data.datasets or []):
        if not part_problems(f"datasets[{index}]", part):
            source = DataSource(part["path"], part.get("name"), columns=part.get("columns"))
            splits = {f"datasets[{index}].split": part.get("split", data.dataset_train_split)}
            problems += _source_problems(f"datasets[{index}].path", source, splits)
    return problems


def _source_problems(key: str, source: DataSource, splits: Mapping[str, str | None]) -> list[str]:
    path = Path(source.path).expanduser()
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
            hint = "; null holds nothing out" if split_key == "dataset_test_split" else ""
            problems.append(
                f"{split_key}: {path} has no split {name!r}, it has: {', '.join(found)}{hint}"
            )
        for file in found.get(name, []):
            problems += _rows_problems(key, file, source)
    return problems


def _rows_problems(key: str, path: Path, source: DataSource) -> list[str]:
    """Problems of the columns, and of the first rows where the format can be read line by line."""
    if path.is_dir():
        return _saved_problems(key, path, source.columns)
    if path.name.endswith(".parquet"):
        return []
    reasons: list[str | None] = []
    try:
        for place, record in islice(read_records(path), ROWS_READ):
            if not reasons:
                mapping = check_columns(list(record), source.columns, place)
            pair = {wanted: record.get(given) for wanted, given in mapping.items()}
            reasons.append(normalize_row(pair, len(reasons), place)["dropped"])
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
    """Problems of a folder that `datasets` saved."""
    if not (folder / "dataset_info.json").is_file():
        return [f"{key}: {folder} holds no dataset_info.json, so it was not saved completely"]
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    try:
        check_columns(list(info.get("features") or {}), columns, str(folder))
    except ValueError as error:
        return [f"{key}: {error}"]
    return []


def _teacher_problems(recipe: Recipe) -> list[str]:
    base, problems = recipe.model.model_name_or_path, []
    for name in METHODS[recipe.method.method].teachers:
        given = getattr(recipe.teachers, name)
        if given is None or not is_local(given):
            continue
        key, folder = f"teachers.{name}", Path(given)
        if not folder.exists():
            problems.append(missing_file(key, given))
        elif (folder / "adapter_config.json").is_file():
            problems += _adapter_problems(key, folder, base)
        elif not (folder / "config.json").is_file():
            problems.append(f"{key}: {given} is neither an adapter nor a model's folder")
    return problems


def _adapter_problems(key: str, folder: Path, base: str) -> list[str]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        return [f"{key}: {folder}/adapter_config.json, line {error.lineno}: not JSON"]
    trained_on = config.get("base_model_name_or_path")
    if not trained_on or trained_on == base or Path(trained_on).resolve() == Path(base).resolve():
        return []
    return [
        f"{key}: {folder} was trained on {trained_on}, not on {base}: give an adapter of this "
        "base, or set model_name_or_path to the adapter's"
    ]


def _text_problems(recipe: Recipe) -> list[str]:
    """Problems of the other files that a recipe names, and of what they need to be read."""
    method, evaluation, problems = recipe.method, recipe.evaluation, []
    files = {
        "directions": method.directions,
        "retain_dataset_name": method.retain_dataset_name,
        "evaluation.prompts": evaluation.prompts,
        "evaluation.unrelated_text": evaluation.unrelated_text,
        "compare.urial": recipe.compare.urial,
        "deepspeed": recipe.training.get("deepspeed"),
        "fsdp_config": recipe.training.get("fsdp_config"),
    }
    for key, name in files.items():
        if isinstance(name, str):
            problems += _file_problems(key, name)
    if evaluation.prompts is not None and evaluation.judge is not None:
        problems += missing_judge("evaluation.judge", evaluation.judge)
    return problems


def missing_judge(key: str, judge: str) -> list[str]:
    """Return what the judge that `key` names needs and is not there: a word list, a local model."""
    if judge == "lexicon" and importlib.util.find_spec("vaderSentiment") is None:
        return [
            f'{key}: lexicon needs vaderSentiment: pip install "rahf[judges]", or name another '
            "judge"
        ]
    kind, _, model = judge.partition(":")
    if kind in ("reward", "choice") and is_local(model) and not Path(model).exists():
        return [missing_file(key, model)]
    return []


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
