"""Protect a direction in an alignment: how much of a side change is gone, what of the wanted stays.

The pairs are half warm against sour remarks, which is wanted, and half of an unwanted trait. Every
arm is one `rahf align` by DUAL with the same teachers; one key differs, `protect`.

    python scripts/protect_experiment.py --data DATA --output out/protect --side refusal --seed 0

Arms that are done are read from their files. DATA is that of `forecast_experiment.py`.
"""

import argparse
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from forecast_data import TRAITS, Given, given_rows, sour_pairs
from forecast_experiment import fitted
from guard_experiment import HERE, UNRELATED, resampled
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rahf.artifacts import alone, read_json, write_json, write_lines
from rahf.data.tokenization import tokenize_texts
from rahf.directions.vectors import Directions
from rahf.guards.automatic_alpha import rows_of, trait_margins
from rahf.models.adapters import pad_id
from rahf.models.likelihood import likelihood, rows_for
from rahf.pipeline.run import run_pipeline
from rahf.recipe.recipe import load_recipe
from rahf.report.tables import markdown

ARMS = ("plain", "protect", "contrast", "random")
EACH = 72  # pairs of either kind
LAYERS = tuple(range(14, 24))
"""Those of target_layers 0.5-0.8."""


def recipe_of(options: argparse.Namespace, folder: Path, arm: str) -> dict[str, Any]:
    """Return warm.yaml on the mixed pairs, with what the arm protects."""
    recipe = yaml.safe_load((HERE / "recipes/smollm2-135m/warm.yaml").read_text())
    del recipe["evaluation"]
    recipe |= {
        "model_name_or_path": options.model,
        "dataset_name": str(folder / "pairs.jsonl"),
        "output_dir": str(folder / arm),
        "dtype": "bfloat16",
        "seed": options.seed,
    }
    return recipe | ({} if arm == "plain" else {"protect": [str(folder / "directions" / arm)]})


def write_pairs(given: Given, side: str, seed: int, path: Path) -> None:
    """Write the pairs that are aligned to; the seed draws them."""
    drawn = random.Random(seed)
    sour = drawn.sample(given.rows["sour"], EACH)
    rows = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in sour]
    rows += drawn.sample(given.rows[side], EACH)
    drawn.shuffle(rows)
    write_lines(path, rows)


def write_directions(directions: Directions, contrast: Directions, seed: int, folder: Path) -> None:
    """Write the direction of the side change, and two random ones of equal norm."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(directions.vectors.shape, generator=generator)
    norms = directions.vectors.norm(dim=-1, keepdim=True)
    uniform = torch.nn.functional.normalize(drawn, dim=-1) * norms
    directions.save(folder / "protect")
    Directions(LAYERS, uniform).save(folder / "random")
    contrast.save(folder / "contrast")


def align(options: argparse.Namespace, folder: Path, arm: str) -> None:
    """Run the stages of `rahf align` up to the adapter; all arms take the teachers of the first."""
    path = folder / f"{arm}.yaml"
    path.write_text(yaml.safe_dump(recipe_of(options, folder, arm)))
    teachers = folder / "plain" / "teachers"
    if arm != "plain" and not (folder / arm / "teachers").exists():
        shutil.copytree(teachers, folder / arm / "teachers")
    recipe = load_recipe(path)
    for stage in recipe.stages:
        if stage != "evaluation":
            run_pipeline(recipe, stage=stage)


def measured(options: argparse.Namespace, given: Given, adapter: Path | None) -> dict[str, Any]:
    """Return the margins of held-out pairs, and the loss of every unrelated text."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    model = model if adapter is None else PeftModel.from_pretrained(model, str(adapter))
    pad = pad_id(tokenizer)
    sour = sour_pairs("test.jsonl")
    warm = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in sour]
    pairs = {"wanted": warm[:32], "side": given.held[options.side]}
    found = {
        name: trait_margins(model.eval(), rows_of(rows, tokenizer), pad).tolist()
        for name, rows in pairs.items()
    }
    texts = tokenize_texts(UNRELATED, tokenizer, 60, 96)
    losses = []
    for start in range(0, len(texts), 10):
        part = texts[start : start + 10]
        with torch.no_grad():
            rows = rows_for(model, [[] for _ in part], part, pad)
            losses += (-likelihood(model, rows).means()).tolist()
    return {**found, "unrelated": losses}


def table(results: Mapping[str, Mapping[str, list[float]]]) -> str:
    header = ["arm", "side change", "wanted change", "side change removed", "wanted change kept"]
    base, plain, rows = results["base"], results["plain"], []
    for arm in (name for name in ARMS if name in results):
        found = results[arm]
        side, wanted = ([each[key] for each in (base, plain, found)] for key in ("side", "wanted"))
        figures = [
            resampled([side[0], side[2]], lambda b, a: a - b),
            resampled([wanted[0], wanted[2]], lambda b, a: a - b),
            resampled(side, lambda b, p, a: (p - a) / (p - b)),
            resampled(wanted, lambda b, p, a: (a - b) / (p - b)),
            resampled([plain["unrelated"], found["unrelated"]], lambda p, a: a - p),
        ]
        rows.append([arm, *("{:+.3f} [{:+.3f}, {:+.3f}]".format(*each) for each in figures)])
    return markdown([*header, "loss over plain"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(HERE / "models/SmolLM2-135M-Instruct"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--side", choices=TRAITS[1:], default="refusal")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.output / f"{options.side}_{options.seed}"
    with alone(folder / "results.json", wait=False):
        given, results = given_rows(options.data), {}
        path = folder / "results.json"
        if path.exists():
            results = read_json(path)
        else:
            write_pairs(given, options.side, options.seed, folder / "pairs.jsonl")
            results["base"] = measured(options, given, None)
            write_json(path, results)
        if not (folder / "directions").exists():
            tokenizer = AutoTokenizer.from_pretrained(options.model)
            model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
            found, placebos = fitted(given, model.eval(), tokenizer, LAYERS, (options.side,))
            contrast = placebos[f"{options.side}_{options.seed}"]
            write_directions(found[options.side], contrast, options.seed, folder / "directions")
        for arm in ARMS:
            if arm not in results:
                align(options, folder, arm)
                results[arm] = measured(options, given, folder / arm)
                write_json(path, results)
        print(table(results))


if __name__ == "__main__":
    main()
