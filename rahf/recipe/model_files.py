"""A recipe against the folders of its model and of its teachers, as far as their JSON files go,
and what the Hub answers about the names that are not paths on this machine.

Knows neither torch nor a GPU, reads no weights and fetches nothing.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rahf.artifacts import expanded
from rahf.data.hub import Finding, Kind, ask_hub, exists, may_be_on_hub, near_name
from rahf.data.sources import FILE_SUFFIXES
from rahf.models.shapes import KNOWN, read_decoder, read_lora, size_problems
from rahf.recipe.direction_files import direction_problems
from rahf.recipe.layers import AUTO, first_layer, resolve_layers
from rahf.recipe.methods import METHODS
from rahf.recipe.model_options import pattern_problems
from rahf.recipe.recipe import Recipe
from rahf.recipe.training_values import causal_families

_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def is_local(name: str) -> bool:
    """Return whether a name means a path on this machine and not a repository on the Hub.

    `data/pairs` could be either: it is a path when it exists, or when the folder `data` does.
    """
    path = expanded(name)
    if exists(name) or not may_be_on_hub(name) or name.endswith(FILE_SUFFIXES):
        return True
    return len(path.parts) == 2 and Path(path.parts[0]).is_dir()


def model_depth(folder: Path) -> int | None:
    """Return the number of decoder blocks in a config.json; None where it is not given."""
    config = _model_config(folder)
    return next((config[key] for key in _DEPTH_KEYS if key in config), None)


def _model_config(folder: Path) -> dict[str, Any]:
    config = json_object(folder / "config.json")
    return config.get("text_config") or config


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ValueError for a file that holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON") from None
    except (UnicodeDecodeError, RecursionError):
        raise ValueError(f"{path}: not JSON text") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object belongs here, not {value!r:.60}")
    return value


def missing_file(key: str, path: str | Path) -> str:
    return f"{key}: {path} does not exist (working directory: {Path.cwd()}){near_name(path)}"


def model_problems(recipe: Recipe) -> list[str]:
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
        family = _family_problems(name, json_object(folder / "config.json"))
        config = _model_config(folder)
    except ValueError as error:
        return [f"model_name_or_path: {error}"]
    if family:
        return family
    wrong = [f"model_name_or_path: {name}/config.json: {line}" for line in size_problems(config)]
    if wrong:
        return wrong
    return [
        *_layer_problems(recipe, model_depth(folder)),
        *_position_problems(recipe.data.max_length, config, name),
        *_padding_problems(folder, config),
        *direction_problems(recipe, config, model_depth(folder)),
        *_module_problems(recipe.model, config),
    ]


def _family_problems(name: str, config: Mapping[str, Any]) -> list[str]:
    """Return why the model cannot be loaded as a causal language model; its own code may."""
    family = config.get("model_type")
    if family is None or family in causal_families() or "auto_map" in config:
        return []
    return [
        f"model_name_or_path: {name} has the model_type {family!r}, which the installed "
        "transformers does not load as a causal language model: give a text decoder, as that of "
        "a vision model saved by itself"
    ]


def _layer_problems(recipe: Recipe, depth: int | None) -> list[str]:
    target_layers, first = recipe.method.target_layers, recipe.model.lora_first_layer
    if target_layers == AUTO and first:
        return [
            f"lora_first_layer: {first} is relative to target_layers, which are auto: give layers"
        ]
    if depth is None or (isinstance(first, float) and not 0 <= first < 1):
        return []  # such a fraction is reported with the options of the model
    try:
        first_layer(first, depth, resolve_layers(target_layers, depth))
    except ValueError as error:
        # An invalid specification is reported with the options of the method.
        known = ("blocks, counted from 0:", "lora_first_layer")
        return [str(error)] if any(text in str(error) for text in known) else []
    return []


# Families whose positions are rows of a table, with the key of its size.
_LEARNED_POSITIONS = {
    **dict.fromkeys(("gpt2", "gpt_bigcode", "openai-gpt"), "n_positions"),
    **dict.fromkeys(("gpt_neo", "opt", "biogpt", "bert-generation"), "max_position_embeddings"),
}


def _position_problems(max_length: Any, config: Mapping[str, Any], name: str) -> list[str]:
    """Return what is wrong where rows may be longer than the table of learned positions."""
    key = _LEARNED_POSITIONS.get(config.get("model_type"))
    positions = config.get(key, config.get("max_position_embeddings")) if key else None
    if positions is None or not isinstance(max_length, int) or max_length <= positions:
        return []
    return [
        f"max_length: {max_length} is longer than the {positions} learned positions of {name}: set "
        f"max_length: {positions} or less"
    ]


def _padding_problems(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Return what is wrong where the tokenizer's padding token has no row of the embedding."""
    rows, path = config.get("vocab_size"), folder / "tokenizer_config.json"
    if rows is None or not path.is_file():
        return []
    try:
        given = json_object(path)
    except ValueError as error:
        return [f"model_name_or_path: {error}"]
    pad, added = given.get("pad_token"), given.get("added_tokens_decoder") or {}
    pad = pad.get("content") if isinstance(pad, dict) else pad
    return [
        f"model_name_or_path: {folder}: the padding token {pad!r} has id {token}, but the "
        f"embedding has {rows} rows: resize the model's embedding, or set another pad_token in "
        "tokenizer_config.json"
        for token, facts in added.items()
        if pad and facts.get("content") == pad and int(token) >= rows
    ]


def _module_problems(model: Any, config: Mapping[str, Any]) -> list[str]:
    """Return the modules that no block has; those of a family that is not known here are left to
    the run.
    """
    modules = model.lora_target_modules
    if modules is None or config.get("model_type") not in KNOWN:
        return []
    if isinstance(modules, str) and pattern_problems(modules):
        return []  # reported with the options of the model
    try:
        decoder = read_decoder(config, model.model_name_or_path)
        read_lora(decoder, model.lora_r, model.lora_dropout, modules)
    except ValueError as error:
        # A size that config.json omits is not checked here.
        return [str(error)] if str(error).startswith("lora_target_modules") else []
    return []


def teacher_folder_problems(recipe: Recipe) -> list[str]:
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
        config = json_object(folder / "adapter_config.json")
    except ValueError as error:
        return [f"{key}: {error}"]
    return [f"{key}: {folder} {problem}" for problem in _adapter_faults(config, base)]


CHANGING_STARTS = ("pissa", "olora", "corda", "loftq")
"""Beginnings of `init_lora_weights` by which PEFT changes the base in place."""


def _adapter_faults(config: Mapping[str, Any], base: str) -> Iterator[str]:
    trained_on = config.get("base_model_name_or_path")
    if trained_on and trained_on != base and Path(trained_on).resolve() != Path(base).resolve():
        yield (
            f"was trained on {trained_on}, not on {base}: give an adapter of this base, or set "
            "model_name_or_path to the adapter's"
        )
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(CHANGING_STARTS) or config.get("layer_replication"):
        yield (
            f"changes the base's own weights (init_lora_weights: {start}, layer_replication: "
            f"{config.get('layer_replication')}), which every other view is read from: convert it "
            "by PEFT's save_pretrained(path_initial_model_for_weight_conversion=...), or merge it "
            "and give the full model"
        )


LEFT = {
    "model": "its layers, modules and weights are checked when it is loaded",
    "dataset": "its columns and rows are checked when it is loaded, as by rahf data",
}
"""What `rahf validate` does not check of what is on the Hub."""


class HubName(NamedTuple):
    """A key whose value names a repository."""

    key: str
    name: str
    kind: Kind
    revision: str | None = None


def hub_names(recipe: Recipe) -> list[HubName]:
    """Return the names that are not paths on this machine."""
    return [named for named in _names(recipe) if not is_local(named.name)]


def _names(recipe: Recipe) -> Iterator[HubName]:
    model, data = recipe.model, recipe.data
    if "model_name_or_path" in recipe.given:  # required; its placeholder names nothing
        yield HubName("model_name_or_path", model.model_name_or_path, "model", model.model_revision)
    if data.dataset_name is not None:
        yield HubName("dataset_name", data.dataset_name, "dataset")
    for index, part in enumerate(data.datasets or []):
        if isinstance(part, dict) and isinstance(part.get("path"), str):
            yield HubName(f"datasets[{index}].path", part["path"], "dataset")
    for name in METHODS[recipe.method.method].teachers:
        if getattr(recipe.teachers, name) is not None:
            yield HubName(f"teachers.{name}", getattr(recipe.teachers, name), "model")
    sections = {"evaluation": recipe.evaluation}
    sections |= {"compare": recipe.compare} if recipe.compare.rows else {}
    for section, options in sections.items():
        judges = options.judge if isinstance(options.judge, list) else [options.judge]
        for kind, _, name in (str(judge).partition(":") for judge in judges):
            if kind in ("reward", "choice"):
                yield HubName(f"{section}.judge", name, "model")
            elif kind == "references":
                yield HubName(f"{section}.encoder", options.encoder, "model")


def ask_for_names(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Return the names that the Hub does not have, and what stays unchecked; a line each."""
    missing, unchecked, gone = [], [], None
    for key, name, kind, revision in hub_names(recipe):
        # A Hub that did not answer once is not waited for again.
        found = gone or ask_hub(name, kind, revision)
        gone = found if found.there is None else None
        here = f"{key}: there is no path {name} here{near_name(name)}"
        if found.there is False:
            missing.append(f"{here}, and {found.reason}")
        else:
            unchecked.append(f"{here}; {_left(found, kind)}")
    return missing, unchecked


def _left(found: Finding, kind: Kind) -> str:
    if found.there:
        return f"the Hub has the name, and {LEFT[kind]}"
    return f"the Hub cannot be reached ({found.reason})"
