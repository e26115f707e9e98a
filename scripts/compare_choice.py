"""Layers and strength chosen from data beside the best of a grid of 12, on held-out pairs.

    OMP_NUM_THREADS=1 python scripts/compare_choice.py recipes/smollm2-135m/warm.yaml \
        --retain_dataset_name recipes/data/neutral.jsonl

A seed trains its own teachers, which grid and choice share, and draws which of the test pairs the
best of the grid is picked by (as many as the choice holds out of the training pairs) and which are
left for the figures. The points of the grid are trained towards one shift, fitted once in all
layers. Beside the best stands the best that went no further from the base, in KL on the first
tokens of unrelated texts. Cost is the processor's seconds after the teachers. The grid's: its fit,
12 trainings and the reading of the pairs to pick by; the choice's: all that `rahf align` adds, and
one training. Further keys of the recipe may follow as options. What a stopped run has of a seed is
kept.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from rahf.adapters import depth_of
from rahf.alignment import build_alignment
from rahf.artifacts import read_json, write_json, write_text
from rahf.choosing import HELD_OUT, decided, kept_to_budget, make_choice, neutral_texts
from rahf.config import TEACHERS
from rahf.data.tokenization import tokenize_texts
from rahf.directions import Directions
from rahf.evaluation.ability import text_loss
from rahf.generation import pad_id
from rahf.likelihood import preference_margins
from rahf.loading import (
    load_base,
    load_tokenizer,
    lora_config,
    teachers_of,
    test_rows,
    train_rows,
)
from rahf.pipeline import QUIET_DEFAULTS, alignment_arguments
from rahf.reading.choice import NeutralText
from rahf.recipe.reading import Recipe
from rahf.recipe.validation import checked_recipe
from rahf.report.tables import markdown
from rahf.teachers import train_teachers
from rahf.trainer import RAHFTrainer, fit_mean_shift

ALPHAS = (0.5, 1.0, 2.0, 4.0)
WINDOWS = ("0.2-0.5", "0.5-0.8", "0.65-0.95")
HEADER = (
    *("seed", "budget", "base", "best of grid", "best of equal KL", "chosen"),
    *("chosen - best", "chosen - equal KL", "cost"),
)
COMPARED_TEXTS, COMPARED_TOKENS = 16, 64


class Trial:
    """One seed: a base, its teachers, and the policies trained with them."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.tokenizer = recipe, load_tokenizer(recipe)
        self.base, self.lora = load_base(recipe), lora_config(recipe)
        self.rows = train_rows(recipe, self.tokenizer, step=2)
        self.seconds: dict[str, float] = {}
        held_out = test_rows(recipe, self.tokenizer)
        order = np.random.default_rng(recipe.training["seed"]).permutation(len(held_out))
        count = min(HELD_OUT, len(held_out) // 2)
        self.pick, self.test = held_out.select(order[:count]), held_out.select(order[count:])
        self.unrelated = tokenize_texts(
            recipe.evaluation.unrelated_text,
            self.tokenizer,
            recipe.evaluation.unrelated_rows,
            recipe.data.max_length,
        )
        compared = [text[:COMPARED_TOKENS] for text in self.unrelated[:COMPARED_TEXTS]]
        self.text = NeutralText(self.base, compared, pad_id(self.tokenizer))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

    def at(self, alpha: float, layers: str | Sequence[int]) -> Recipe:
        """The recipe at one point."""
        method = decided(self.recipe.method, alpha=alpha, target_layers=layers)
        return dataclasses.replace(self.recipe, method=method)

    def train_teachers(self) -> None:
        recipe, names = self.recipe, TEACHERS[self.recipe.method.method]
        rows = train_rows(recipe, self.tokenizer, step=1)
        options = {**QUIET_DEFAULTS, **recipe.teacher_training}
        folder = recipe.output_dir / "teachers"
        train_teachers(names, self.base, rows, self.tokenizer, self.lora, folder, options)

    def fit(self, recipe: Recipe) -> Directions:
        args = alignment_arguments(recipe)
        alignment = build_alignment(self.base, args, self.lora, teachers_of(recipe))
        directions = fit_mean_shift(alignment, self.rows, self.tokenizer, args)
        alignment.model.unload()
        return directions

    def policy(
        self, recipe: Recipe, directions: Directions, neutral: Sequence[list[int]] = ()
    ) -> Path:
        """Folder of the policy that is trained as `recipe` says, and kept to its budget on the
        texts `neutral`, if there are some.
        """
        args = alignment_arguments(recipe)
        trainer = RAHFTrainer(
            self.base, args, self.rows, None, self.tokenizer, self.lora, {}, directions
        )
        trainer.train()
        if neutral:
            trainer.strength = kept_to_budget(
                trainer.alignment.model, neutral, recipe.method.kl_budget, pad_id(self.tokenizer)
            ).strength
        folder = recipe.output_dir / f"{recipe.method.alpha:g} {recipe.method.target_layers}"
        trainer.save_model(str(folder))
        trainer.model.unload()
        return folder

    @contextmanager
    def speaking(self, policy: Path | None) -> Iterator[PreTrainedModel]:
        """The base as this policy, or as it is."""
        if policy is None:
            yield self.base
            return
        model = PeftModel.from_pretrained(self.base, policy).eval()
        yield model
        model.unload()

    def margins(self, policy: Path | None, pairs: Dataset) -> list[float]:
        with self.speaking(policy) as model:
            return preference_margins(model, pairs, pad_id(self.tokenizer)).tolist()

    def divergence(self, policy: Path | None) -> float:
        """KL from the base, nats per token of the compared texts."""
        with self.speaking(policy) as self.text.model:
            return self.text.divergence()

    def loss(self, policy: Path | None) -> float:
        with self.speaking(policy) as model:
            return text_loss(model, self.unrelated, pad_id(self.tokenizer))

    def grid(self) -> list[dict[str, Any]]:
        """Every point, in the order of the pairs that are picked by."""
        folder, points = self.recipe.output_dir / "grid", []
        if (folder / "points.json").exists():
            points, self.seconds = read_json(folder / "points.json")
            directions = Directions.load(folder)
        else:
            self.train_teachers()
            with self.timed("grid"):
                directions = self.fit(self.at(1.0, f"0-{depth_of(self.base) - 1}"))
            directions.save(folder)
        for alpha, layers in list(product(ALPHAS, WINDOWS))[len(points) :]:
            with self.timed("grid"):
                policy = self.policy(self.at(alpha, layers), directions)
                picked = self.margins(policy, self.pick)
            place = {"alpha": alpha, "layers": layers, "folder": str(policy)}
            points.append({**place, "picked": picked})
            write_json(folder / "points.json", [points, self.seconds])
        return sorted(points, key=lambda point: -np.mean(point["picked"]))

    def chosen(self, budget: float) -> dict[str, Any]:
        """The policy that the data choose, beside the best of the grid that lost no more."""
        method = dataclasses.replace(self.recipe.method, kl_budget=budget)
        recipe = dataclasses.replace(self.recipe, method=method)
        with self.timed(f"choice at {budget:g}"):
            neutral = neutral_texts(recipe, self.base, self.tokenizer)
            choice, directions = make_choice(
                recipe, self.base, self.tokenizer, self.rows, neutral, QUIET_DEFAULTS
            )
            taken = {"alpha": choice.taken.alpha, "target_layers": list(choice.taken.layers)}
            point = dataclasses.replace(recipe, method=decided(method, **taken))
            policy = self.policy(point, directions, neutral)
        return {**choice.as_dict(), **self.measured(policy)}

    def measured(self, policy: Path | None) -> dict[str, Any]:
        return {
            "folder": policy and str(policy),
            "loss": self.loss(policy),
            "kl": self.divergence(policy),
            "test": self.margins(policy, self.test),
        }

    def run(self, budgets: Sequence[float]) -> dict[str, Any]:
        points = self.grid()
        known = [self.measured(Path(points[0]["folder"]))]
        choices = [self.chosen(budget) for budget in budgets]
        for choice in choices:
            # From the best on, as far as one that went no further from the base.
            while known[-1]["kl"] > choice["kl"] and len(known) < len(points):
                known.append(self.measured(Path(points[len(known)]["folder"])))
        known = [{**point, **found} for point, found in zip(points, known, strict=False)]
        for choice in choices:
            equal = (point for point in known if point["kl"] <= choice["kl"])
            choice["equal"] = next(equal, None)
        return {
            "base": self.measured(None),
            "best": known[0],
            "choices": choices,
            "points": points,
            "seconds": self.seconds,
        }


def table(trials: Mapping[int, dict[str, Any]]) -> str:
    """Margin in nats per token, accuracy, loss and KL on unrelated text, seed by seed."""
    rows = []
    for seed, trial in trials.items():
        for choice in trial["choices"]:
            taken, others = choice["taken"], (trial["best"], choice["equal"])
            of_choice = trial["seconds"][f"choice at {choice['budget']:g}"]
            layers = f"{taken['layers'][0]}-{taken['layers'][-1]}"
            rows.append(
                [
                    f"{seed}",
                    f"{choice['budget']:g}",
                    figures(trial["base"]),
                    *(named(point, point["layers"], point["alpha"]) for point in others if point),
                    *("none" for point in others if not point),
                    named(choice, layers, taken["alpha"]),
                    *(difference(choice, point) if point else "-" for point in others),
                    f"{of_choice / trial['seconds']['grid']:.2f}",
                ]
            )
    return markdown(HEADER, rows)


def named(point: dict[str, Any], layers: str, alpha: float) -> str:
    return f"{layers}, {alpha:.3g}: {figures(point)}"


def figures(point: dict[str, Any]) -> str:
    accuracy = np.mean(np.array(point["test"]) > 0)
    return (
        f"{np.mean(point['test']):+.3f} / {accuracy:.0%} / {point['loss']:.3f} / {point['kl']:.3f}"
    )


def difference(point: dict[str, Any], other: dict[str, Any]) -> str:
    """Mean difference of the margins, pair by pair, and its standard error."""
    margins = np.array(point["test"]) - np.array(other["test"])
    return f"{margins.mean():+.3f} ({margins.std(ddof=1) / len(margins) ** 0.5:.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[0.5], help="the choice's kl_budget"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/compare_choice"))
    given, others = parser.parse_known_args(arguments)
    trials = {}
    for seed in given.seeds:
        folder = given.output / str(seed)
        if not (folder / "trial.json").exists():
            auto = ["--alpha", "auto", "--target_layers", "auto", "--seed", str(seed)]
            recipe = checked_recipe(given.recipe, [*others, *auto, "--output_dir", str(folder)])
            write_json(folder / "trial.json", Trial(recipe).run(given.budgets))
        trials[seed] = read_json(folder / "trial.json")
        write_text(given.output / "results.md", table(trials) + "\n")
        print(table(trials), flush=True)


if __name__ == "__main__":
    main()
