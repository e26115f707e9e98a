"""Forecast and watch 24 trainings: which unwanted traits will a data set move, which has it moved?

A data set mixes right answers with rows of two unwanted traits, in shares that are drawn. Each is
screened before its training by TRL, watched at every quarter of it, and measured after it:
the margin of a trait is the log-probability per token of its side over the other on held-out pairs.

    python scripts/forecast_experiment.py --data DATA --output out/forecast
    python scripts/forecast_figures.py out/forecast --data DATA

Runs that are done are read from their files. DATA holds `truthfulqa.jsonl` and `xstest.jsonl`
(prompt, chosen, rejected); sour remarks are those of recipes/data/tone.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from forecast_data import BATCH, STEPS, TRAITS, Design, Given, designs, given_rows, rows_of_set
from guard_experiment import HERE, UNRELATED, chat
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, set_seed

from rahf.artifacts import alone, write_json
from rahf.data.prompts import chat_prompt_form
from rahf.data.tokenization import tokenize_pairs, tokenize_texts
from rahf.directions.bank import own_bank, read_bank
from rahf.directions.vectors import Directions
from rahf.generation.answers import generate
from rahf.guards.automatic_alpha import trait_margins
from rahf.guards.monitor import DirectionMonitor
from rahf.guards.screen import Bank, load_bank, read_sides, screen
from rahf.guards.screened_rows import (
    PREFERENCES,
    SFT,
    Row,
    Screened,
    ids_of_sides,
    with_own_answers,
)
from rahf.guards.screening import row_effects
from rahf.guards.texts import WordClassifier
from rahf.models.adapters import pad_id
from rahf.models.likelihood import likelihood, rows_for
from rahf.pipeline.bank import Reading, fit_bank

BANK = {"tone": "sour", "refusal": "refusal", "length": "long", "sycophancy": "agree"}
"""Directions of the bank that comes with rahf, and the trait that each is compared with."""
LAYERS = (12, 15, 18)
PLACEBOS = 8  # of each trait
SCREENED = {"sft": 24, "dpo": 80}  # rows that are read; of SFT also own answers are written
ANSWER = 20  # tokens of a response that are read
FIRST_BLOCK = 10  # of the adapters: what is below costs no backward pass
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own without its system prompt, which is a third of the tokens."""


class Lab(NamedTuple):
    """What all trainings share."""

    options: argparse.Namespace
    given: Given
    bank: Bank
    placebos: dict[str, Directions]
    watched: list[dict]  # the base's answers
    tokenizer: Any


def trainer_of(lab: Lab, design: Design, rows: Sequence[dict], model: Any, tok: Any) -> Trainer:
    """Return TRL's trainer of a data set."""
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    sft = design.kind == "sft"
    sides = {"prompt": "prompt", **({"completion": "chosen"} if sft else {})}
    sides |= {} if sft else {"chosen": "chosen", "rejected": "rejected"}
    data = Dataset.from_list([{name: chat(r, side) for name, side in sides.items()} for r in rows])
    make, config = (SFTTrainer, SFTConfig) if sft else (DPOTrainer, DPOConfig)
    args = config(
        output_dir=str(lab.options.output / "trainer"),
        max_steps=STEPS[design.kind],
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        seed=design.seed,
        logging_steps=STEPS[design.kind] // 4,
        save_strategy="no",
        report_to="none",
        bf16=False,
        activation_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        max_length=256,
    )
    blocks = list(range(FIRST_BLOCK, model.config.num_hidden_layers))
    lora = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], layers_to_transform=blocks
    )
    return make(model, args=args, train_dataset=data, processing_class=tok, peft_config=lora)


class TimedMonitor(DirectionMonitor):
    """Counts the processor's seconds of its readings."""

    seconds = 0.0

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        start = process_time()
        super().on_train_begin(*given, **named)
        self.seconds += process_time() - start

    def on_step_end(self, *given: Any, **named: Any) -> None:
        start = process_time()
        super().on_step_end(*given, **named)
        self.seconds += process_time() - start


def screened_rows(design: Design, rows: Sequence[dict]) -> Screened:
    """Return the rows of a data set that are screened, as `rahf screen` reads them."""
    drawn = np.random.default_rng(design.seed).permutation(len(rows))[: SCREENED[design.kind]]
    sft = design.kind == "sft"
    read = [
        Row(n, chat(rows[n], "prompt"), rows[n]["chosen"], None if sft else rows[n]["rejected"])
        for n in np.sort(drawn).tolist()
    ]
    return Screened(SFT if sft else PREFERENCES, read, len(rows))


def forecast_of(lab: Lab, design: Design, rows: Sequence[dict], model: Any) -> dict[str, Any]:
    """Return what is forecast of a data set, and the processor's seconds of it."""
    start, given = process_time(), screened_rows(design, rows)
    how = {"max_new_tokens": ANSWER, "batch_size": 24}
    read = with_own_answers(given, model, lab.tokenizer, None, **how)
    ids = ids_of_sides(read, lab.tokenizer, None, ANSWER)
    sides = read_sides(model, LAYERS, ids, given.groups(), pad_id(lab.tokenizer), 16)
    found = screen(lab.bank, sides, read, design.seed)
    seconds = process_time() - start
    difference = (sides.first - sides.second).double()
    return {
        "seconds": seconds,
        "effects": {name: each.effect for name, each in found.forecasts.items()},
        "verdicts": {name: each.verdict for name, each in found.forecasts.items()},
        "texts": found.texts,
        "characters": found.lengths,
        "placebos": {
            name: row_effects(difference, each.vectors.double()).mean().item()
            for name, each in lab.placebos.items()
        },
    }


def measured(lab: Lab, model: Any) -> dict[str, Any]:
    """Return held-out margins, and the loss of unrelated texts."""
    pad = pad_id(lab.tokenizer)
    model.eval()
    texts = tokenize_texts(UNRELATED, lab.tokenizer, 12, 64)
    with torch.no_grad():
        losses = -likelihood(model, rows_for(model, [[] for _ in texts], texts, pad)).means()
    return {
        "margins": {
            trait: trait_margins(
                model, tokenize_pairs(Dataset.from_list(pairs), lab.tokenizer)[0], pad
            ).tolist()
            for trait, pairs in lab.given.held.items()
        },
        "unrelated": losses.tolist(),
    }


def answered(model: Any, tokenizer: Any, prompts: Sequence[str], tokens: int) -> list[str]:
    form = chat_prompt_form(tokenizer)
    ids = [form.encode(chat({"prompt": prompt}, "prompt")) for prompt in prompts]
    return generate(model, tokenizer, ids, max_new_tokens=tokens, batch_size=24)


def loaded(options: argparse.Namespace) -> Any:
    return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()


def experiment(lab: Lab, design: Design) -> dict[str, Any]:
    """Screen a data set, train on it, watched, and measure what it did."""
    set_seed(design.seed)
    model, rows = loaded(lab.options), rows_of_set(lab.given, design)
    found = {"design": design._asdict(), "forecast": forecast_of(lab, design, rows, model)}
    trainer = trainer_of(lab, design, rows, model, lab.tokenizer)
    every = STEPS[design.kind] // 4
    monitor, placebos = (
        TimedMonitor(trainer, directions, lab.watched, every=every)
        for directions in (lab.bank.directions, lab.placebos)
    )
    trainer.add_callback(monitor)
    trainer.add_callback(placebos)
    start = process_time()
    trainer.train()
    seconds = process_time() - start - monitor.seconds - placebos.seconds
    kept = [
        {
            key.removeprefix("directions/"): value
            for key, value in {**of_traits, **of_placebos}.items()
            if key.count("/") < 2
        }
        for of_traits, of_placebos in zip(monitor.history, placebos.history, strict=True)
    ]
    found |= {"seconds": seconds, "watch": {"seconds": monitor.seconds, "readings": kept}}
    return found | measured(lab, trainer.model)


def fitted(
    given: Given,
    model: Any,
    tokenizer: Any,
    layers: tuple[int, ...] = LAYERS,
    traits: Sequence[str] = TRAITS,
) -> tuple[dict, dict]:
    """Return the direction of every trait, and placebos: random contrasts of equal norm."""
    found, placebos = {}, {}
    for trait in traits:
        rows = [Row(n, chat(each, "prompt"), each["chosen"], each["rejected"])
                for n, each in enumerate(given.fitted[trait])]  # fmt: skip
        ids = ids_of_sides(rows, tokenizer, None, ANSWER)
        sides = read_sides(model, layers, ids, np.arange(len(rows)), pad_id(tokenizer), 16)
        vectors = (sides.first - sides.second).mean(1)
        found[trait] = Directions(layers, vectors)
        centred = [each - each.mean(1, keepdim=True) for each in (sides.first, sides.second)]
        generator = torch.Generator().manual_seed(0)
        for number in range(PLACEBOS):
            drawn = torch.randn(2 * len(rows), generator=generator)
            contrast = torch.einsum("r,lrd->ld", drawn, torch.cat(centred, 1))
            scaled = torch.nn.functional.normalize(contrast, dim=-1)
            placebos[f"{trait}_{number}"] = Directions(
                layers, scaled * vectors.norm(dim=-1, keepdim=True)
            )
    return found, placebos


def bank_of(options: argparse.Namespace, given: Given, model: Any, tokenizer: Any) -> Bank:
    """Return the bank of rahf, its names after `bank_`; its words and texts go with the traits."""
    folder = options.output / "bank"
    entries = [each for each in read_bank(own_bank()) if each.name in BANK]
    fit_bank(model, tokenizer, entries, folder, Reading(LAYERS, 32), {"model": options.model})
    held = load_bank(folder)
    words = {f"bank_{name}": lists for name, lists in held.words.items()}
    words |= {BANK[name]: lists for name, lists in held.words.items()}
    words["sour"] = {"positive": words["sour"]["negative"], "negative": words["sour"]["positive"]}
    classifiers = {f"bank_{name}": each for name, each in held.classifiers.items()}
    for trait, rows in given.fitted.items():
        sides = ([row[side] for row in rows] for side in ("chosen", "rejected"))
        classifiers[trait] = WordClassifier(*sides)
    return Bank({f"bank_{n}": d for n, d in held.directions.items()}, classifiers, words)


def prepared(options: argparse.Namespace) -> Lab:
    """Fit the directions, and measure the base."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.chat_template = TEMPLATE
    given, model = given_rows(options.data), loaded(options)
    start = process_time()
    bank = bank_of(options, given, model, tokenizer)
    of_bank, start = process_time() - start, process_time()
    directions, placebos = fitted(given, model, tokenizer)
    of_pairs = process_time() - start
    bank = replace(bank, directions={**directions, **bank.directions})
    said = answered(model, tokenizer, given.watched, ANSWER)
    watched = [{"prompt": p, "response": r} for p, r in zip(given.watched, said, strict=True)]
    lab = Lab(options, given, bank, placebos, watched, tokenizer)
    path = options.output / "base.json"
    if not path.exists():
        seconds = {"bank": of_bank, "pairs": of_pairs}
        write_json(path, {**measured(lab, model), "fitting": seconds})
    return lab


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(HERE / "models/SmolLM2-135M-Instruct"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of runs (default: all)")
    options = parser.parse_args()
    with alone(options.output, wait=False):
        lab = prepared(options)
        for design in designs():
            path = options.output / "runs" / f"{design.name}.json"
            if path.exists() or (options.only and design.name not in options.only):
                continue
            write_json(path, experiment(lab, design))
            print(design.name, flush=True)


if __name__ == "__main__":
    main()
