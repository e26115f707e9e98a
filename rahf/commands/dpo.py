"""`rahf dpo`: DPO on a recipe's data and model, as a baseline."""

import argparse
from pathlib import Path

from rahf.commands.parsers import recipe_command


def add(commands) -> None:
    summary = "train the baseline DPO (TRL) on a recipe's pairs, model and LoRA"
    shown = " [--beta B] [--output FOLDER]"
    option = recipe_command(commands, "dpo", summary, run, options=shown).add_argument
    option("--beta", metavar="B", type=float, default=0.1, help="of DPO (default: 0.1)")
    option("--output", metavar="FOLDER", type=Path, help="default: dpo in the recipe's output_dir")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.validation import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    from rahf.artifacts import write_json
    from rahf.dpo import train_dpo
    from rahf.loading import load_base, load_tokenizer, lora_config, train_rows

    tokenizer, folder = load_tokenizer(recipe), options.output or recipe.output_dir / "dpo"
    arguments = {key: value for key, value in recipe.training.items() if key != "output_dir"}
    figures = train_dpo(
        load_base(recipe),
        train_rows(recipe, tokenizer, step=2),
        tokenizer,
        lora_config(recipe),
        folder,
        {**arguments, "beta": options.beta},
    )
    settings = {**recipe.as_dict(), "method": "dpo", "beta": options.beta}
    write_json(folder / "metrics.json", {"training": figures, "settings": settings})
    print(f"DPO: {folder}, loss {figures['train_loss']:.4f}, {figures['train_runtime']:.0f} s")
    return 0
