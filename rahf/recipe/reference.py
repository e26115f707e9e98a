"""The reference of all recipe keys, made from the option dataclasses: plain text and Markdown."""

import dataclasses
import inspect
import textwrap

from rahf.recipe.fields import annotations, describe_type
from rahf.recipe.keys import default_of, full_name, groups
from rahf.recipe.methods import METHODS, method_names
from rahf.recipe.training_arguments import TRAINING_DEFAULTS, TRANSFORMERS_DEFAULTS
from rahf.recipe.yaml_file import as_yaml

_TRAINING = (
    "Every further key at the top level is a field of transformers.TrainingArguments (output_dir, "
    "learning_rate, max_steps, per_device_train_batch_size, ...). The same fields under "
    "`teachers` apply to step 1; those omitted there are inherited from the top level. "
    "`report_to` (default: none) names trackers such as tensorboard or wandb, which receive the "
    "loss, its terms, and the reached share and cosine of every layer."
)

_OWN_DEFAULTS = (
    "Fields whose defaults differ from those of transformers, at the top level and for teachers. "
    "Set them in a recipe that is to train as another Trainer does."
)

_REASONS = {
    "learning_rate": "A LoRA hardly learns at transformers' default. 1e-3 to 2e-3 is a good range "
    "for SmolLM2-135M (recipes/LOG.md). Larger models need less: the recipes of 7 and 8 billion "
    "parameters set 9e-6 (dual) and 3e-4 (scit).",
    "lr_scheduler_type": "Trainings are short: with linear decay to 0, most of their steps are "
    "small.",
    "logging_steps": "Trainings are short: every step is a line of log.jsonl.",
    "remove_unused_columns": "The collator reads every column of the rows.",
}
"""Why a default of `TRAINING_DEFAULTS` differs, and which other values are good."""

_BY_METHOD = (
    "Defaults of the methods that differ from those above; a method without a column has none. "
    "Those of " + ", ".join(method_names(lambda method: method.pushes_away)) + " are the "
    "published values, "
    "or their "
    "counterparts here "
    "(docs/method.md). "
    "Keys of the "
    "recipe and of the "
    "command line "
    "override them; "
    "num_train_epochs "
    "replaces a "
    "default of "
    "max_steps. `rahf "
    "validate "
    "RECIPE.yaml` "
    "prints every "
    "effective value."
)

_WIDTH = 96  # characters of a line in a terminal


def as_text() -> str:
    """Return name, default and help of every key, for a terminal."""
    lines = []
    for title, section, cls in groups():
        lines += ["", f"{title.removesuffix(':')}: {_summary(cls)}"]
        for spec in dataclasses.fields(cls):
            lines.append(f"  {full_name(section, spec.name)} (default: {_default(spec)})")
            lines += textwrap.wrap(
                spec.metadata["help"], _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join(["recipe keys:", *lines, "", *textwrap.wrap(_TRAINING, _WIDTH)])


def as_markdown() -> str:
    """Return the same as tables, with the type of each key: the content of docs/recipe.md."""
    lines = [
        "# Keys of a recipe",
        "",
        "Made by `make docs` from the options in `rahf/recipe`; do not edit.",
        "",
        "A recipe is a YAML file. The command line overrides every key: `--alpha 3`,",
        "`--teachers.learning_rate 1e-4`. `rahf validate RECIPE.yaml` prints what is wrong with a",
        "recipe, or every effective value.",
    ]
    for title, section, cls in groups():
        kinds = annotations(cls)
        lines += ["", f"## `{title}`" if section else f"## {title}", "", _summary(cls), ""]
        lines += ["| key | default | values | meaning |", "|---|---|---|---|"]
        for spec in dataclasses.fields(cls):
            values = describe_type(kinds[spec.name])
            row = f"`{spec.name}`", f"`{_default(spec)}`", values, spec.metadata["help"]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    lines += ["", "## Training", "", *textwrap.wrap(_TRAINING, 100), "", *_own_defaults(), ""]
    return "\n".join([*lines, *_by_method()])


def _own_defaults() -> list[str]:
    """Return the table of training arguments whose defaults differ from those of transformers."""
    lines = [*textwrap.wrap(_OWN_DEFAULTS, 100), ""]
    lines += ["| key | default | default of transformers | why |", "|---|---|---|---|"]
    for key, own in TRAINING_DEFAULTS.items():
        theirs = as_yaml(TRANSFORMERS_DEFAULTS[key])
        lines.append(f"| `{key}` | `{as_yaml(own)}` | `{theirs}` | {_REASONS[key]} |")
    return lines


def _by_method() -> list[str]:
    """Return the table of the methods' own defaults."""
    of_method = {name: row.defaults for name, row in METHODS.items() if row.defaults}
    lines = ["## Defaults by method", "", *textwrap.wrap(_BY_METHOD, 100), ""]
    lines += ["| key | " + " | ".join(f"`{name}`" for name in of_method) + " |"]
    lines += ["|---|" + "---|" * len(of_method)]
    for key in dict.fromkeys(key for keys in of_method.values() for key in keys):
        values = (f"`{as_yaml(keys[key])}`" if key in keys else "" for keys in of_method.values())
        lines.append(f"| `{key}` | " + " | ".join(values) + " |")
    return lines


def _summary(cls: type) -> str:
    return inspect.getdoc(cls).partition("\n")[0]


def _default(spec: dataclasses.Field) -> str:
    """Return the default as a recipe would set it."""
    default = default_of(spec)
    return "required" if default is dataclasses.MISSING else as_yaml(default)


if __name__ == "__main__":
    print(as_markdown())
