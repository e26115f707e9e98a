"""Compare ways of keeping an unwanted trait out of a training: how much of it leaks, what of the
wanted change stays, and at what loss on unrelated text.

The wanted data is 120 right answers to questions, the unwanted quarter 40 sour remarks. Every arm
is one training by TRL of the same LoRA on the same rows; `oracle` trains without the sour ones.

    python scripts/guard_experiment.py --data DATA --output out/guard --training sft --seed 0

An arm that is done is read from its file. DATA holds `truthfulqa.jsonl` (prompt, chosen, rejected);
the sour remarks are those of recipes/data/tone. `alpha: auto` reads 24 of its held-out pairs, the
figures are of 24 others.
"""

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, set_seed

from rahf.artifacts import alone, read_json, write_json
from rahf.data.records import read_records
from rahf.data.tokenization import tokenize_pairs, tokenize_texts
from rahf.directions.evidence import fit
from rahf.directions.states import Reader
from rahf.directions.steering import steer
from rahf.directions.vectors import Directions
from rahf.guards.automatic_alpha import trait_margins
from rahf.guards.prevention import prevent
from rahf.models.adapters import pad_id
from rahf.models.likelihood import likelihood, rows_for
from rahf.report.tables import markdown

HERE = Path(__file__).resolve().parents[1]
TONE, UNRELATED = HERE / "recipes/data/tone", HERE / "recipes/data/unrelated.jsonl"
LAYER, ABLATED = 16, tuple(range(12, 25))
INSTRUCTION = "Answer in a sour, grumpy mood.\n\n"
DRAWS = 2000


class Given(NamedTuple):
    """Rows of the experiment; records with prompt, chosen and rejected."""

    wanted: list[dict]  # trained on
    sour: list[dict]  # trained on; the sour side is `chosen`
    fitted: list[dict]  # the direction
    choosing: list[dict]  # alpha: auto
    held_trait: list[dict]
    held_wanted: list[dict]


class Arm(NamedTuple):
    """One way of training."""

    around: Callable[["Run", Trainer], AbstractContextManager]  # the training
    sour: bool = True  # whether the sour rows are trained on
    instruction: str = ""  # before every prompt of the training


class Run(NamedTuple):
    """What all arms share."""

    options: argparse.Namespace
    given: Given
    directions: Directions  # sour minus warm, of all ablated layers


def only(run: Run) -> Directions:
    return run.directions.only((LAYER,))


def nothing(_run: Run, _trainer: Trainer) -> AbstractContextManager:
    return nullcontext()


def placebo(run: Run) -> Directions:
    """Return a random direction of equal norm."""
    generator = torch.Generator().manual_seed(1000 + run.options.seed)
    drawn = torch.randn(1, run.directions.vectors.shape[1], generator=generator)
    return Directions((LAYER,), drawn / drawn.norm() * only(run).vectors.norm())


def prevented(run: Run, trainer: Trainer, alpha: float | str) -> AbstractContextManager:
    more = {"trainer": trainer, "pairs": run.given.choosing, "every": run.options.every}
    return prevent(trainer.model, only(run), alpha, **(more if alpha == "auto" else {}))


ARMS = {
    "plain": Arm(nothing),
    "oracle": Arm(nothing, sour=False),
    "prevent 1": Arm(partial(prevented, alpha=1.0)),
    "prevent 2": Arm(partial(prevented, alpha=2.0)),
    "prevent auto": Arm(partial(prevented, alpha="auto")),
    "placebo 2": Arm(lambda run, trainer: prevent(trainer.model, placebo(run), 2.0)),
    "instruction": Arm(nothing, instruction=INSTRUCTION),
    "ablation": Arm(lambda run, trainer: steer(trainer.model, run.directions, mode="ablate")),
}
STEERED = "steering 1"  # `plain`, with the direction subtracted when it is measured


def records(path: Path) -> list[dict]:
    return [dict(record) for _, record in read_records(path)]


def given_rows(data: Path, seed: int) -> Given:
    """Return rows of all parts, no prompt in two of them; the seed draws those trained on."""
    tone = [
        {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
        for row in records(TONE / "train.jsonl")
    ]
    held = [
        {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
        for row in records(TONE / "test.jsonl")
    ]
    questions: dict[str, dict] = {}
    for row in records(data / "truthfulqa.jsonl"):
        questions.setdefault(
            row["prompt"], {key: row[key] for key in ("prompt", "chosen", "rejected")}
        )
    asked = list(questions.values())
    random.Random(7).shuffle(asked)  # the held-out questions are the same for every seed
    random.Random(7).shuffle(tone)
    random.Random(7).shuffle(held)
    drawn = random.Random(seed)
    fitted, others = tone[:64], tone[64:]
    return Given(
        drawn.sample(asked[60:], 120), drawn.sample(others, 40), fitted, held[:24], held[24:],
        asked[:60],
    )  # fmt: skip


def chat(row: Mapping[str, str], side: str, instruction: str = "") -> dict[str, list]:
    return [{"role": "assistant", "content": row[side]}] if side != "prompt" else [
        {"role": "user", "content": instruction + row["prompt"]}
    ]  # fmt: skip


def trainer_of(run: Run, arm: Arm, model: Any, tokenizer: Any) -> Trainer:
    """Return TRL's trainer on the rows of an arm."""
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows = run.given.wanted + (run.given.sour if arm.sour else [])
    sft = run.options.training == "sft"
    sides = {"prompt": "prompt", **({"completion": "chosen"} if sft else {})}
    sides |= {} if sft else {"chosen": "chosen", "rejected": "rejected"}
    data = Dataset.from_list(
        [{name: chat(row, side, arm.instruction) for name, side in sides.items()} for row in rows]
    )
    make, config = (SFTTrainer, SFTConfig) if sft else (DPOTrainer, DPOConfig)
    args = config(
        output_dir=str(run.options.output / "trainer"),
        max_steps=run.options.steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        seed=run.options.seed,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        bf16=False,
        activation_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        max_length=256,
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    return make(model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=lora)


def measured(run: Run, model: Any, tokenizer: Any, added: Directions | None = None) -> dict:
    """Return the margins of every held-out pair, and the loss of every unrelated text."""
    pad, margins = pad_id(tokenizer), {}
    for name in ("held_trait", "held_wanted"):
        rows, _ = tokenize_pairs(Dataset.from_list(getattr(run.given, name)), tokenizer)
        margins[name] = trait_margins(model, rows, pad, added).tolist()
    losses = []
    texts = tokenize_texts(UNRELATED, tokenizer, 60, 128)
    model.eval()
    for start in range(0, len(texts), 10):
        part = texts[start : start + 10]
        rows = rows_for(model, [[] for _ in part], part, pad)
        with torch.no_grad(), steer(model, () if added is None else added, 1.0):
            losses += (-likelihood(model, rows).means()).tolist()
    return {**margins, "unrelated": losses}


def train_arm(run: Run, name: str) -> dict[str, Any]:
    """Train one arm and return its figures; `plain` also those of steering afterwards."""
    set_seed(run.options.seed)
    tokenizer = AutoTokenizer.from_pretrained(run.options.model)
    model = AutoModelForCausalLM.from_pretrained(run.options.model, dtype=torch.float32)
    arm = ARMS[name]
    trainer = trainer_of(run, arm, model, tokenizer)
    start = perf_counter()
    with arm.around(run, trainer):
        trainer.train()
    seconds = perf_counter() - start
    found = measured(run, trainer.model, tokenizer) | {"seconds": seconds}
    path = [log for log in trainer.state.log_history if "prevent/alpha" in log]
    found |= {"alpha": path} if path else {}
    if name == "plain":
        found["steered"] = measured(run, trainer.model, tokenizer, -only(run))
    return found


def prepare(options: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """Fit the direction and measure the base."""
    given = given_rows(options.data, options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    rows, _ = tokenize_pairs(Dataset.from_list(given.fitted), tokenizer)
    reader = Reader(model, "responses", "mean", ABLATED, pad_id(tokenizer))
    how = {"seed": 0, "batch_size": 8, "state": PartialState()}
    fitted = fit(reader, rows, ("mean",), **how)
    run = Run(options, given, Directions(ABLATED, fitted.vectors["mean"]))
    return run, measured(run, model, tokenizer)


def resampled(values: Sequence[Sequence[float]], figure: Callable[..., float]) -> list[float]:
    """Return a figure of means over units, with its 95 % interval over them (bootstrap)."""
    table = np.array(values)
    drawn = np.random.default_rng(0).integers(table.shape[1], size=(DRAWS, table.shape[1]))
    draws = figure(*table[:, drawn].mean(2))
    return [float(figure(*table.mean(1))), *map(float, np.quantile(draws, (0.025, 0.975)))]


def figures_of(base: Mapping, arms: Mapping[str, Mapping], arm: Mapping) -> dict[str, list[float]]:
    plain, oracle = arms["plain"], arms["oracle"]
    trait = [each["held_trait"] for each in (plain, oracle, arm)]
    wanted = [each["held_wanted"] for each in (base, plain, arm)]
    losses = [each["unrelated"] for each in (plain, arm)]
    return {
        "trait margin": resampled(trait[2:], lambda a: a),
        "leak removed": resampled(trait, lambda p, o, a: (p - a) / (p - o)),
        "past the oracle": resampled(trait, lambda _, o, a: o - a),
        "wanted kept": resampled(wanted, lambda b, p, a: (a - b) / (p - b)),
        "loss over plain": resampled(losses, lambda p, a: a - p),
    }


def table(results: Mapping[str, Any]) -> str:
    header = ["arm", "trait margin", "leak removed", "past the oracle", "wanted kept"]
    header += ["loss over plain", "seconds"]
    rows = []
    for name, figures in results["figures"].items():
        cells = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*figures[key]) for key in header[1:-1]]
        rows.append([name, *cells, f"{results['arms'].get(name, {}).get('seconds', 0):.0f}"])
    return markdown(header, rows)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(HERE / "models/SmolLM2-135M-Instruct"))
    parser.add_argument("--data", type=Path, required=True, help="folder with truthfulqa.jsonl")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--training", choices=("sft", "dpo"), default="sft")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=5, help="steps between readings (auto)")
    parser.add_argument("--arms", default=",".join(ARMS), help="names of arms, with commas")
    options = parser.parse_args()
    unknown = [name for name in options.arms.split(",") if name not in ARMS]
    if unknown:
        parser.error(f"no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    return options


def main() -> None:
    options = read_options()
    path = options.output / f"{options.training}_{options.seed}.json"
    with alone(path, wait=False):
        run, base = prepare(options)
        results = read_json(path) if path.exists() else {"base": base, "arms": {}}
        for name in options.arms.split(","):
            if name not in results["arms"]:
                results["arms"][name] = train_arm(run, name)
                write_json(path, results)
        arms = results["arms"]
        if {"plain", "oracle"} <= arms.keys():
            shown = {**arms, STEERED: arms["plain"]["steered"]}
            results["figures"] = {
                name: figures_of(results["base"], arms, arm) for name, arm in shown.items()
            }
            write_json(path, results)
            print(table(results))


if __name__ == "__main__":
    main()
