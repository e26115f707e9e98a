"""A recipe as text: what it will do, and the value of every key.

Knows recipes and, for the number of decoder blocks, the model's config.json; no torch.
"""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rahf.recipe.held_out import DEFAULT_TEST_SPLIT, HELD_OUT, held_out_split
from rahf.recipe.keys import default_of, full_name, groups
from rahf.recipe.layers import AUTO, resolve_layers
from rahf.recipe.model_files import is_local, model_depth
from rahf.recipe.recipe import Recipe
from rahf.recipe.training_arguments import TRAINING_DEFAULTS, TRANSFORMERS_DEFAULTS
from rahf.recipe.yaml_file import as_yaml

_WIDTH = 80  # characters of a line in a terminal
_NAMES = 30  # of them for the name of a key

_MARKS = (
    "Every key with its effective value. (default): the recipe omits the key; (default of {}): "
    "the method sets it. Fields of TrainingArguments that are not shown have the defaults of "
    "transformers; teachers inherit those of the top level."
)


def summary(recipe: Recipe) -> str:
    """Return a few lines on what a recipe will do."""
    method, data, name = recipe.method, recipe.data, recipe.model.model_name_or_path
    paths = (
        [data.dataset_name] if data.datasets is None else [part["path"] for part in data.datasets]
    )
    lengths = {name: f" ({_length(recipe.teacher_training)})" for name in method.facts.teachers}
    lengths["alignment"] = f" ({_length(recipe.training)})"
    rows = {
        "method": _method_text(method),
        "model": f"{_with_origin(name)}{_layers_text(recipe)}",
        "data": ", ".join(map(_with_origin, paths)),
        "held out": _held_out_text(recipe),
        "stages": ", ".join(f"{stage}{lengths.get(stage, '')}" for stage in recipe.stages),
        "results": recipe.training["output_dir"],
    }
    return "\n".join(line for key, value in rows.items() for line in _wrapped(key, value, 11))


def as_figures(recipe: Recipe) -> dict[str, Any]:
    """Return what `rahf validate --json` prints: the stages, and every key with its value."""
    folder = Path(recipe.model.model_name_or_path)
    depth = model_depth(folder) if (folder / "config.json").is_file() else None
    layers: Any = recipe.method.target_layers
    if depth is not None and layers != AUTO:
        layers = list(resolve_layers(layers, depth))
    return {
        "method": recipe.method.method,
        "model": recipe.model.model_name_or_path,
        "blocks": depth,  # None: not known before the model is fetched
        "layers": layers,
        "stages": list(recipe.stages),
        "output_dir": recipe.training["output_dir"],
        "given": sorted(recipe.given),
        "values": {**TRAINING_DEFAULTS, **recipe.as_dict(), "compare": vars(recipe.compare)},
    }


def _method_text(method: Any) -> str:
    away = {"rejected": method.rejected_weight, "chosen": method.chosen_weight}
    weights = {
        **(away if method.facts.pushes_away else {"align": method.align_weight}),
        "retain": method.retain_weight,
        "similarity": method.similarity_weight,
        "kl": method.kl_weight,
        "sft": method.sft_weight,
        "dpo": method.dpo_weight,
    }
    shown = ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight)
    if not method.facts.pushes_away:
        return (
            f"{method.method}, reference {method.reference}, alpha {method.alpha}, "
            f"response_source {method.response_source}; weights: {shown}"
        )
    length = f", vector of length {method.alpha:g}" if method.facts.random_target else ""
    return f"{method.method}{length}; weights ({method.weights_over_time}): {shown}"


def _held_out_text(recipe: Recipe) -> str:
    split = held_out_split(recipe.data)
    if split == HELD_OUT:
        return f"{recipe.data.test_share:.0%} of the training prompts (test_share)"
    described = "nothing" if split is None else f"split {split}"
    if split == DEFAULT_TEST_SPLIT and not is_local(recipe.data.dataset_name or ""):
        described += f", or where it has one split, {recipe.data.test_share:.0%} of its prompts"
    return described


def _with_origin(name: str) -> str:
    return name if is_local(name) else f"{name} (from the Hub)"


def _layers_text(recipe: Recipe) -> str:
    folder = Path(recipe.model.model_name_or_path)
    depth = model_depth(folder) if (folder / "config.json").is_file() else None
    if depth is None or recipe.method.target_layers == AUTO:
        return f", target layers {recipe.method.target_layers}"
    layers = resolve_layers(recipe.method.target_layers, depth)
    return f", target layers {', '.join(map(str, layers))} of {depth}"


def _length(training: Mapping[str, Any]) -> str:
    if training.get("max_steps", -1) > 0:
        return f"steps: {training['max_steps']}"
    return f"epochs: {training.get('num_train_epochs', TRANSFORMERS_DEFAULTS['num_train_epochs'])}"


class _Held(NamedTuple):
    """A key and the value that holds."""

    title: str  # of its group
    name: str
    value: Any
    default: Any  # _UNKNOWN: it is required, or the default is that of transformers
    of_method: bool  # whether the method sets the default


_UNKNOWN = object()


def _held(recipe: Recipe) -> Iterator[_Held]:
    """Yield every key of a recipe, group by group."""
    values, sections = recipe.as_dict(), {"compare": vars(recipe.compare)}
    of_method = recipe.method.facts.defaults
    for title, section, options in groups():
        held = (sections.get(section) or values[section]) if section else values
        defaults = {spec.name: default_of(spec) for spec in dataclasses.fields(options)}
        own = [*defaults, *(recipe.teachers_training if section == "teachers" else ())]
        for name in own:
            set_by_method = not section and name in of_method
            default = of_method[name] if set_by_method else defaults.get(name, _UNKNOWN)
            default = _UNKNOWN if default is dataclasses.MISSING else default
            yield _Held(title, full_name(section, name), held[name], default, set_by_method)
    defaults = TRAINING_DEFAULTS | of_method
    for name, value in (TRAINING_DEFAULTS | recipe.training).items():
        yield _Held("Training", name, value, defaults.get(name, _UNKNOWN), name in of_method)


def given_values(recipe: Recipe) -> str:
    """Return the keys that are given, each with its default where it has another value."""
    lines = ["Given"]
    for held in _held(recipe):
        if held.name in recipe.given:
            known = held.default is not _UNKNOWN and held.default is not None
            mark = f" (default: {as_yaml(held.default)})" if known else ""
            mark = " (as by default)" if held.value == held.default else mark
            lines += _wrapped(held.name, f"{as_yaml(held.value)}{mark}", _NAMES)
    return "\n".join(lines)


def effective_values(recipe: Recipe) -> str:
    """Return every key of a recipe with its value, defaults marked, for a terminal."""
    lines, group = textwrap.wrap(_MARKS.format(recipe.method.method), _WIDTH), None
    for held in _held(recipe):
        lines += ["", held.title] if held.title != group else []
        group, mark = held.title, ""
        if held.name not in recipe.given:
            mark = f" (default of {recipe.method.method})" if held.of_method else " (default)"
        lines += _wrapped(held.name, f"{as_yaml(held.value)}{mark}", _NAMES)
    return "\n".join(lines)


def _wrapped(name: str, value: str, indent: int) -> list[str]:
    """Return a name and its value, wrapped beside it; a path is never cut."""
    return textwrap.wrap(
        value,
        _WIDTH,
        initial_indent=f"  {name:<{indent - 2}}",
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
