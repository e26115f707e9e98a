"""Compare ways of keeping an unwanted trait out of a training: how much of it leaks, what of the
wanted change stays, and at what loss on unrelated text.

The wanted data is 120 right answers to questions, the unwanted quarter 40 sour remarks. Every arm
is one training by TRL of the same LoRA on the same rows; `oracle` trains without the sour ones.

    python scripts/guard_experiment.py --data DATA --output out/guard --training sft --seed 0
    python scripts/guard_experiment.py --pool out/guard/sft_0.json out/guard/sft_1.json

An arm that is done is read from its file. DATA holds `truthfulqa.jsonl` (prompt, chosen, rejected);
the sour remarks are those of recipes/data/tone. `alpha: auto` reads 16 of its held-out pairs, the
figures are of 24 others. `--composition tails` puts the trait into the task's own rows: a quarter
of the right answers end in a sour remark, and the oracle trains on them without it.
"""

import argparse
import random
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from datasets import Dataset
from guard_figures import judged, table
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, set_seed

from rahf.artifacts import alone, read_json, write_json
from rahf.data.records import read_records
from rahf.data.tokenization import tokenize_pairs, tokenize_texts
from rahf.directions.evidence import fit
from rahf.directions.states import Reader
from rahf.directions.steering import steer
from rahf.directions.vectors import Directions
from rahf.generation.answers import generate
from rahf.guards.prevention import prevent
from rahf.models.adapters import pad_id
from rahf.models.likelihood import likelihood, pair_likelihoods, rows_for

HERE = Path(__file__).resolve().parents[1]
TONE, UNRELATED = HERE / "recipes/data/tone", HERE / "recipes/data/unrelated.jsonl"
LAYER, ABLATED = 16, tuple(range(12, 25))
INSTRUCTION = "Answer in a sour, grumpy mood.\n\n"
SHORT = 150
"""Characters of a question with its answer: longer ones would be padding of the remarks."""
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
ANSWERING = ("plain", "oracle", "prevent auto", "placebo 2")


def loaded(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return model and tokenizer; its chat template writes no system prompt that nobody asked."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.chat_template = CHAT
    dtype = getattr(torch, options.dtype)
    return AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype), tokenizer


def records(path: Path) -> list[dict]:
    return [dict(record) for _, record in read_records(path)]


def longest(row: Mapping[str, str]) -> int:
    return len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"]))


def given_rows(data: Path, seed: int) -> Given:
    """Return rows of all parts, no held-out prompt in another; the seed draws those trained on."""
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
    asked = [row for row in questions.values() if longest(row) <= SHORT]
    random.Random(7).shuffle(asked)  # the held-out questions are the same for every seed
    random.Random(7).shuffle(tone)
    random.Random(7).shuffle(held)
    drawn = random.Random(seed)
    fitted, others = tone[:64], tone[64:]
    return Given(
        drawn.sample(asked[60:], 120), drawn.sample(others, 40), fitted, held[:16], held[24:],
        asked[:30],
    )  # fmt: skip


def chat(row: Mapping[str, str], side: str, instruction: str = "") -> dict[str, list]:
    return [{"role": "assistant", "content": row[side]}] if side != "prompt" else [
        {"role": "user", "content": instruction + row["prompt"]}
    ]  # fmt: skip


def trained_rows(run: Run, arm: Arm) -> list[dict]:
    """Return the rows of an arm: the right answers, with the trait beside or inside them."""
    wanted, sour = run.given.wanted, run.given.sour
    if not arm.sour:
        return wanted
    if run.options.composition == "rows":
        return wanted + sour
    tails = [re.split(r"(?<=[.!?]) ", row["chosen"])[-1] for row in sour[: len(wanted) // 4]]
    carried = [
        {**row, "chosen": f"{row['chosen']} {tail}"}
        for row, tail in zip(wanted, tails, strict=False)
    ]
    return carried + wanted[len(carried) :]


def trainer_of(run: Run, arm: Arm, model: Any, tokenizer: Any) -> Trainer:
    """Return TRL's trainer on the rows of an arm."""
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows = trained_rows(run, arm)
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
        per_device_train_batch_size=run.options.batch,
        learning_rate=run.options.learning_rate,
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
    """Return the margins of every held-out pair, the log-probability per token of every right
    answer, and the loss of every unrelated text.
    """
    pad, held = pad_id(tokenizer), {}
    model.eval()
    with torch.no_grad(), steer(model, () if added is None else added, 1.0):
        for name in ("held_trait", "held_wanted"):
            rows, _ = tokenize_pairs(Dataset.from_list(getattr(run.given, name)), tokenizer)
            held[name] = pair_likelihoods(model, rows, pad)
        answers = held["held_wanted"].chosen / held["held_wanted"].chosen_tokens
        texts, losses = tokenize_texts(UNRELATED, tokenizer, 30, 64), []
        for start in range(0, len(texts), 10):
            part = texts[start : start + 10]
            rows = rows_for(model, [[] for _ in part], part, pad)
            losses += (-likelihood(model, rows).means()).tolist()
    margins = {name: each.token_margins().tolist() for name, each in held.items()}
    return {**margins, "held_answers": answers.tolist(), "unrelated": losses}


def train_arm(run: Run, name: str) -> dict[str, Any]:
    """Train one arm and return its figures; `plain` also those of steering afterwards."""
    set_seed(run.options.seed)
    model, tokenizer = loaded(run.options)
    arm = ARMS[name]
    trainer = trainer_of(run, arm, model, tokenizer)
    start = perf_counter()
    with arm.around(run, trainer):
        trainer.train()
    seconds = perf_counter() - start
    found = measured(run, trainer.model, tokenizer) | {"seconds": seconds}
    path = [log for log in trainer.state.log_history if "prevent/alpha" in log]
    found |= {"alpha": path} if path else {}
    if run.options.answers and name in ANSWERING:
        found["answers"] = answers_of(run, trainer.model, tokenizer)
    if name == "plain":
        found["steered"] = measured(run, trainer.model, tokenizer, -only(run))
    return found


def answers_of(run: Run, model: Any, tokenizer: Any) -> list[dict]:
    """Return greedy answers to the held-out prompts of the trait."""
    rows = run.given.held_trait
    prompts = [chat(row, "prompt") for row in rows]
    ids = [
        tokenizer.apply_chat_template(p, add_generation_prompt=True)["input_ids"] for p in prompts
    ]
    written = generate(model, tokenizer, ids, max_new_tokens=32, batch_size=len(rows))
    return [
        {"prompt": row["prompt"], "response": text} for row, text in zip(rows, written, strict=True)
    ]


def prepare(options: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """Fit the direction and measure the base, once for all seeds and trainings of a folder."""
    given = given_rows(options.data, options.seed)
    folder = options.output / "base"
    if (folder / "figures.json").exists():
        run = Run(options, given, Directions.load(folder))
        return run, read_json(folder / "figures.json")
    model, tokenizer = loaded(options)
    model.eval()
    rows, _ = tokenize_pairs(Dataset.from_list(given.fitted), tokenizer)
    reader = Reader(model, "responses", "mean", ABLATED, pad_id(tokenizer))
    how = {"seed": 0, "batch_size": 8, "state": PartialState()}
    fitted = fit(reader, rows, ("mean",), **how)
    run = Run(options, given, Directions(ABLATED, fitted.vectors["mean"]))
    found = measured(run, model, tokenizer)
    run.directions.save(folder)
    write_json(folder / "figures.json", found)
    return run, found


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(HERE / "models/SmolLM2-135M-Instruct"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--data", type=Path, help="folder with truthfulqa.jsonl")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--training", choices=("sft", "dpo"), default="sft")
    parser.add_argument("--composition", choices=("rows", "tails"), default="rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8, help="rows of one step")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=5, help="steps between readings (auto)")
    parser.add_argument("--arms", default=",".join(ARMS), help="names of arms, with commas")
    parser.add_argument("--answers", action="store_true", help="write answers of four arms")
    parser.add_argument("--pool", type=Path, nargs="+", help="print a table over result files")
    options = parser.parse_args()
    if options.pool is None and None in (options.data, options.output):
        parser.error("give --data and --output, or --pool FILES")
    unknown = [name for name in options.arms.split(",") if name not in ARMS]
    if unknown:
        parser.error(f"no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    return options


def show(seeds: Sequence[Mapping[str, Any]]) -> None:
    """Print what the results of one or more seeds hold."""
    if all({"plain", "oracle"} <= each["arms"].keys() for each in seeds):
        print(table(seeds))
        print(judged(seeds))


def main() -> None:
    options = read_options()
    if options.pool:
        show([read_json(path) for path in options.pool])
        return
    name = options.training + ("" if options.composition == "rows" else "_tails")
    path = options.output / f"{name}_{options.seed}.json"
    with alone(path, wait=False):
        run, base = prepare(options)
        results = {"training": options.training, "base": base, "arms": {}}
        results = read_json(path) if path.exists() else results
        for arm in options.arms.split(","):
            if arm not in results["arms"]:
                results["arms"][arm] = train_arm(run, arm)
                write_json(path, results)
        show([results])


if __name__ == "__main__":
    main()
