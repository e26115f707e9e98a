"""`rahf dpo`: DPO on a recipe's data and model, as a baseline."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rahf.commands.parsers import recipe_command

if TYPE_CHECKING:
    from rahf.recipe.reading import Recipe


def add(commands) -> None:
    summary = "train the baseline DPO (TRL) on a recipe's pairs, model and LoRA"
    shown = " [--beta B] [--output FOLDER]"
    option = recipe_command(commands, "dpo", summary, run, options=shown).add_argument
    option("--beta", metavar="B", type=float, default=0.1, help="of DPO (default: 0.1)")
    option("--output", metavar="FOLDER", type=Path, help="default: dpo in the recipe's output_dir")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.validation import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    from accelerate import PartialState

    from rahf.artifacts import StageRecord
    from rahf.pipeline import deciding
    from rahf.stages import is_complete, run_recorded
    from rahf.termination import handling_sigterm, leave

    PartialState(cpu=recipe.training.get("use_cpu", False))
    whole = {**asdict(recipe.model), **asdict(recipe.data), **deciding(recipe.training)}
    folder = options.output or recipe.output_dir / "dpo"
    record = StageRecord(folder, {**whole, "beta": options.beta})
    with handling_sigterm(leave):
        if not is_complete(record, "DPO"):
            run_recorded(record, "DPO", lambda: _train(recipe, options.beta, folder))
    return 0


def _train(recipe: "Recipe", beta: float, folder: Path) -> dict[str, Any]:
    """Figures of the training, which are printed."""
    from accelerate import PartialState

    from rahf.artifacts import METRICS_FILE, write_json
    from rahf.dpo import train_dpo
    from rahf.loading import load_base, load_tokenizer, lora_config, train_rows

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
