"""`rahf reward`: train a reward model on preference pairs."""

import argparse
from pathlib import Path
from typing import Any

from rahf.commands.options.models import DTYPES

EPILOG = """\
Judge with it: rahf evaluate responses --judge reward:FOLDER ... Keep the pairs it is trained on
apart from those that are aligned on and evaluated."""

ARGUMENTS = {
    "learning_rate": "learning rate",
    "num_train_epochs": "positive number",
    "max_steps": "count",
    "per_device_train_batch_size": "count",
    "gradient_accumulation_steps": "count",
    "max_length": "count",
    "seed": "seed",
    "save_steps": "count",
    "save_total_limit": "count",
}
SWITCHES = ("bf16", "activation_checkpointing", "use_cpu")
"""Arguments of TRL's RewardConfig that are options here, and the kinds of their numbers."""

DECIDING = ("model", "pairs", "split", "test_split", "lora_r", "dtype", "chat_template")
"""Other options that determine the result."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    option("--model", required=True, metavar="NAME", help="language or reward model to start from")
    option("--pairs", required=True, metavar="NAME", help="pairs: a file, a folder or a Hub id")
    option(
        "--split", metavar="NAME", default="train", help="split that is trained on (default: train)"
    )
    option(
        "--test_split", metavar="NAME", help="split that accuracy is measured on (default: none)"
    )
    option("--output", required=True, metavar="FOLDER", type=Path, help="folder of the model")
    option(
        "--lora_r",
        metavar="N",
        type="rank from zero",
        default=16,
        help="rank of the LoRA; 0: train all weights (default: 16)",
    )
    option(
        "--dtype", choices=DTYPES, default="float32", help="dtype of the weights (default: float32)"
    )
    option(
        "--chat_template",
        metavar="FILE",
        help="chat template, Jinja text or file (default: the tokenizer's)",
    )
    for name, kind in ARGUMENTS.items():
        option(f"--{name}", metavar="N", type=kind, help=f"{name} of TRL's RewardConfig")
    option(
        "--save_strategy",
        choices=("no", "steps", "epoch"),
        help="save_strategy of TRL's RewardConfig",
    )
    for name in SWITCHES:
        option(f"--{name}", action="store_true", help=f"{name} of TRL's RewardConfig")


def run(options: argparse.Namespace) -> int:
    from accelerate import PartialState

    from rahf.artifacts import identity_of
    from rahf.distributed.sigterm import handling_sigterm, leave
    from rahf.pipeline.stages import deciding, is_complete, output_of_one_run, run_recorded
    from rahf.records.stage_record import StageRecord

    PartialState(cpu=options.use_cpu)
    given = {name: getattr(options, name) for name in (*ARGUMENTS, "save_strategy")}
    arguments = {name: value for name, value in given.items() if value is not None}
    arguments |= {name: True for name in SWITCHES if getattr(options, name)}
    if arguments.pop("activation_checkpointing", False):
        arguments["activation_checkpointing"] = True
    whole = {name: getattr(options, name) for name in DECIDING} | deciding(arguments)
    read = {"model": options.model, "pairs": options.pairs}
    made_from = {name: identity_of(path) for name, path in read.items()}
    record = StageRecord(options.output, whole, made_from=made_from, made_by=options.command)
    with handling_sigterm(leave), output_of_one_run(options.output, options.use_cpu):
        if not is_complete(record, "reward model"):
            run_recorded(record, "reward model", lambda: _train(options, arguments))
    return 0


def _train(options: argparse.Namespace, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return figures on held-out pairs, or of the training; print the accuracy."""
    from accelerate import PartialState

    from rahf.artifacts import METRICS_FILE, write_json
    from rahf.data.sources import load_pairs
    from rahf.training.trl_reward import train_reward_model

    held_out = options.test_split and load_pairs(options.pairs, split=options.test_split)
    figures = train_reward_model(
        options.model,
        load_pairs(options.pairs, split=options.split),
        options.output,
        held_out=held_out or None,
        lora_r=options.lora_r,
        dtype=options.dtype,
        chat_template=options.chat_template,
        arguments=arguments,
    )
    state = PartialState()
    if state.is_main_process:
        write_json(options.output / METRICS_FILE, figures)
    if "eval_accuracy" in figures:
        accuracy, pairs = figures["eval_accuracy"], figures["eval_pairs"]
        state.print(f"held-out accuracy {accuracy:.1%} on {pairs} pairs")
    state.print(f"reward model: {options.output}")
    return {"figures": figures}
