"""What a training leaves beside its adapter: log, chart, figures, model card.

The command and Python code leave the same files. Knows a finished trainer; trains nothing.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig

from rahf.artifacts import LOG_FILE, METRICS_FILE, write_json, write_lines, write_text
from rahf.recipe.as_run import method_as_run
from rahf.recipe.method_options import MethodOptions
from rahf.report.card import FROM_PYTHON, is_own_card, model_card
from rahf.report.training_chart import training_chart
from rahf.trainer_config import RAHFConfig

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
CHART_FILE = "training.png"


def training_figures(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of the training as a whole."""
    whole = next((line for line in reversed(log) if "train_runtime" in line), {})
    return {key: value for key, value in whole.items() if key not in ("step", "epoch")}


def write_log(log: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write every logged line, and the chart of them."""
    write_lines(folder / LOG_FILE, log)
    training_chart(log, folder / CHART_FILE)


def write_card(
    folder: Path, recipe: Mapping[str, Any], metrics: Mapping[str, Any], **how: Any
) -> None:
    """Write the model card of a run; `how` goes to `model_card`."""
    card = model_card(recipe, metrics, **method_as_run(recipe)._asdict(), **how)
    write_text(folder / CARD_FILE, card)


def write_python_run(
    folder: Path, recipe: Mapping[str, Any], log: Sequence[Mapping[str, Any]]
) -> None:
    """Write log, chart, figures and card of a training without a recipe file.

    The figures hold the recipe as `settings`, from which `rahf push` fills in the card again.
    """
    held_out = next((line for line in reversed(log) if "eval_loss" in line), {})
    metrics = training_figures(log)
    metrics |= {key: value for key, value in held_out.items() if key.startswith("eval_")}
    write_log(log, folder)
    settings = json.loads(json.dumps(recipe, default=str))
    write_json(folder / METRICS_FILE, metrics | {"settings": settings})
    card = folder / CARD_FILE
    if card.is_file() and not is_own_card(card):
        logger.warning("%s is not a card of rahf; it is kept, and no card is written", card)
        return
    write_card(folder, recipe, metrics, files=FROM_PYTHON)


def as_recipe(
    args: RAHFConfig, base: str, lora: LoraConfig, layers: Sequence[int], data: Dataset
) -> dict[str, Any]:
    """Return the keys of a recipe that a card shows, of a training from Python.

    Args:
        layers: the target layers as numbers.
    """
    names = data_set_names(data)
    return {
        **{spec.name: getattr(args, spec.name) for spec in dataclasses.fields(MethodOptions)},
        "model_name_or_path": base,
        "dataset_name": names[0] if len(names) == 1 else None,
        "datasets": [{"path": name} for name in names],
        "target_layers": ", ".join(map(str, layers)),
        "lora_r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "use_dora": lora.use_dora,
        "use_rslora": lora.use_rslora,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
    }


def data_set_names(data: Dataset) -> list[str]:
    """Return the repositories of the Hub that rows were read from, by the folders of their cache.

    `datasets` names such a folder OWNER___NAME; files of this machine leave no name.
    """
    parts = [part for file in data.cache_files for part in Path(file["filename"]).parts]
    found = [
        part.replace("___", "/") for part in parts if re.fullmatch(r"[\w.-]+?___[\w.-]+", part)
    ]
    return list(dict.fromkeys(found))
