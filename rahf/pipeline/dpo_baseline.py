"""The baseline DPO as a stage of a recipe: run once, recorded, resumed after a stop.

Builds, runs and saves, as `pipeline` does for the stages of an alignment.
"""

import dataclasses
from pathlib import Path
from typing import Any

from accelerate import PartialState

from rahf.artifacts import METRICS_FILE, identity_of, write_json
from rahf.pipeline.inputs import (
    data_files,
    load_base,
    load_tokenizer,
    lora_config,
    train_rows,
)
from rahf.pipeline.stages import deciding, is_complete, run_recorded
from rahf.recipe.recipe import Recipe
from rahf.records.stage_record import StageRecord
from rahf.training.trl_dpo import train_dpo


def run_dpo(recipe: Recipe, beta: float, folder: Path) -> None:
    """Train DPO on the recipe's pairs, model and LoRA into `folder`, unless it is complete there.

    Raises:
        ValueError: the folder holds a DPO training made with other settings.
    """
    PartialState(cpu=recipe.training.get("use_cpu", False))
    sections = {**dataclasses.asdict(recipe.model), **dataclasses.asdict(recipe.data)}
    settings = {**sections, **deciding(recipe.training), "beta": beta}
    paths = {"model_name_or_path": [recipe.model.model_name_or_path]}
    paths["the pairs"] = data_files(recipe)
    made_from = {name: identity_of(*found) for name, found in paths.items()}
    record = StageRecord(folder, settings, recipe.defaults(), made_from, "rahf dpo")
    if not is_complete(record, "DPO"):
        run_recorded(record, "DPO", lambda: _train(recipe, beta, folder))


def _train(recipe: Recipe, beta: float, folder: Path) -> dict[str, Any]:
    """Train, save and print; return the figures of the training."""
    tokenizer = load_tokenizer(recipe)
    arguments = {key: value for key, value in recipe.training.items() if key != "output_dir"}
    figures = train_dpo(
        load_base(recipe),
        train_rows(recipe, tokenizer, step=2),
        tokenizer,
        lora_config(recipe),
        folder,
        {**arguments, "beta": beta},
    )
    state = PartialState()
    if state.is_main_process:
        settings = {**recipe.as_dict(), "method": "dpo", "beta": beta}
        write_json(folder / METRICS_FILE, {"training": figures, "settings": settings})
    state.print(
        f"DPO: {folder}, loss {figures['train_loss']:.4f}, {figures['train_runtime']:.0f} s"
    )
    return {"training": figures}
