"""The reference of all recipe keys, made from the option dataclasses: plain text and Markdown."""

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from rahf.recipe.fields import annotations, describe_type
from rahf.recipe.keys import FLAT, SECTIONS
from rahf.recipe.presets import PRESETS

_TRAINING = (
    "Every further key at the top level is a field of transformers.TrainingArguments (output_dir, "
    "learning_rate, max_steps, per_device_train_batch_size, ...). The same fields under `teachers` "
    "hold for step 1; what is not given there is taken from the top level. `report_to` (none "
    "where it is not given) names trackers, tensorboard or wandb for instance: they receive the "
    "loss, its terms, and the reached share and cosine of every layer."
)

_PRESETS = (
    "What these keys begin with, in place of the defaults above, where the recipe names one of "
    "these methods: published values, or what stands for them here (docs/method.md). A key that "
    "the recipe or the command line gives holds; num_train_epochs takes max_steps away."
)

_WIDTH = 96  # characters of a line in a terminal


def as_text() -> str:
    """Name, default and help of every key, for a terminal."""
    lines = []
    for section, cls in _sections():
        lines += ["", f"{section}: {_summary(cls)}" if section else _summary(cls)]
        for spec in dataclasses.fields(cls):
            lines.append(f"  {_full(section, spec.name)} (default: {_default(spec)})")
            lines += textwrap.wrap(
                spec.metadata["help"], _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join(["recipe keys:", *lines, "", *textwrap.wrap(_TRAINING, _WIDTH)])


def as_markdown() -> str:
    """The same as tables, with the type of each key: the content of docs/recipe.md."""
    lines = [
        "# Keys of a recipe",
        "",
        "Made by `make docs` from the options in `rahf/recipe`; do not edit.",
        "",
        "A recipe is a YAML file. On the command line every key can be set anew: `--alpha 3`,",
        "`--teachers.learning_rate 1e-4`. `rahf validate RECIPE.yaml` tells what is wrong with "
        "one.",
    ]
    for section, cls in _sections():
        kinds = annotations(cls)
        title = f"`{section}:`" if section else cls.__name__.removesuffix("Options")
        lines += ["", f"## {title}", "", _summary(cls), ""]
        lines += ["| key | default | values | meaning |", "|---|---|---|---|"]
        for spec in dataclasses.fields(cls):
            values = describe_type(kinds[spec.name])
            row = f"`{spec.name}`", f"`{_default(spec)}`", values, spec.metadata["help"]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    lines += ["", "## Presets", "", *textwrap.wrap(_PRESETS, 100), ""]
    lines += ["| key | " + " | ".join(f"`{method}`" for method in PRESETS) + " |"]
    lines += ["|---|" + "---|" * len(PRESETS)]
    for key in dict.fromkeys(key for keys in PRESETS.values() for key in keys):
        values = (f"`{_yaml(keys[key])}`" if key in keys else "" for keys in PRESETS.values())
        lines.append(f"| `{key}` | " + " | ".join(values) + " |")
    return "\n".join([*lines, "", "## Training", "", *textwrap.wrap(_TRAINING, 100)])


def _sections() -> Iterator[tuple[str, type]]:
    yield from (("", cls) for cls in FLAT)
    yield from SECTIONS.items()


def _full(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _summary(cls: type) -> str:
    return inspect.getdoc(cls).partition("\n")[0]


def _default(spec: dataclasses.Field) -> str:
    """The default as it would stand in a recipe."""
    if spec.default_factory is not dataclasses.MISSING:
        return _yaml(spec.default_factory())
    return "required" if spec.default is dataclasses.MISSING else _yaml(spec.default)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).partition(
        "\n"
    )[0]
