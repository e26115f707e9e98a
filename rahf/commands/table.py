"""The table of commands, in the order in which a user needs them: what each does, and an example.

Each command is a module of this package with `add_options(parser)` and `run`. No such module is
imported here.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from rahf.commands.options.parsers import plain_command, recipe_command, recipe_file_command

FROM_CHECKPOINT = "the same command resumes from the last checkpoint"
FROM_FILE = "the same command resumes where it stopped"
FROM_START = "the same command starts from the beginning"


class Command(NamedTuple):
    """A command, whose module has its name."""

    parser: Callable[..., argparse.ArgumentParser]  # makes its parser; determines what `run` gets
    summary: str
    example: str
    """Arguments of one call, which its help shows."""
    interrupted: str = FROM_START


class Group(NamedTuple):
    """A command of several kinds: `rahf evaluate tasks` is in the module `evaluate_tasks`."""

    summary: str
    kinds: Mapping[str, Command]


START: dict[str, Command | Group] = {
    "quickstart": Command(
        plain_command,
        "fetch a small model, align it in two directions, print what changed",
        "",
        FROM_CHECKPOINT,
    ),
    "recipes": Group(
        "list the recipes that ship with rahf, or copy one with its data",
        {
            "list": Command(plain_command, "list the recipes that ship with rahf", ""),
            "copy": Command(
                plain_command,
                "copy a recipe and its data into the current folder",
                "smollm2-135m/warm",
            ),
        },
    ),
}

RECIPE: dict[str, Command | Group] = {
    "validate": Command(
        recipe_file_command,
        "report every problem of a recipe, without running it",
        "my.yaml --alpha 3",
    ),
    "data": Command(
        recipe_command, "show what a recipe's data becomes: counts, lengths, rows", "my.yaml"
    ),
    "plan": Command(
        recipe_command,
        "report what a recipe will cost, without loading weights",
        "my.yaml --accelerate_config fsdp2 --num_processes 8 --device_memory 80",
    ),
    "screen": Command(
        plain_command,
        "forecast which traits a data set will move, before any training",
        "my_pairs.jsonl --model Qwen/Qwen3-1.7B --output outputs/screened",
    ),
    "prepare": Command(
        recipe_command, "tokenise a recipe's data into the cache, nothing else", "my.yaml"
    ),
    "align": Command(
        recipe_command,
        "run the stages of a recipe that are not done yet",
        "my.yaml --alpha 3 --output_dir outputs/stronger",
        FROM_CHECKPOINT,
    ),
}

RESULT: dict[str, Command | Group] = {
    "generate": Command(
        plain_command,
        "write a model's responses to the prompts of a file, or print those to --prompt",
        '--model outputs/mine --prompt "How was the film?"',
        FROM_FILE,
    ),
    "chat": Command(
        plain_command,
        "chat with an aligned model and its base side by side",
        "--model outputs/mine",
    ),
    "evaluate": Group(
        "measure a model's preferences, judge responses, run tasks",
        {
            "preferences": Command(
                plain_command,
                "measure whether a model finds chosen responses likelier than rejected ones",
                "--model outputs/mine --pairs test.jsonl --output preferences.json",
            ),
            "responses": Command(
                plain_command,
                "let a judge score responses, or decide between those of two files",
                "--responses mine.jsonl --against base.jsonl --judge choice:Qwen/Qwen3-8B",
                f"{FROM_START}, except for what is kept in --verdicts",
            ),
            "tasks": Command(
                plain_command,
                "run tasks of lm-evaluation-harness (pip install 'rahf[eval]')",
                "--model outputs/mine --tasks arc_easy,truthfulqa_mc1 --limit 200",
            ),
        },
    ),
    "compare": Command(
        recipe_file_command,
        "train and measure methods and baselines side by side: the rows of the section compare",
        "my.yaml --compare.seeds [0] --compare.judge length",
        FROM_CHECKPOINT,
    ),
    "sweep": Command(
        recipe_file_command,
        "run a recipe with every combination of the values given",
        "my.yaml --alpha 1,2,5 --output_dir outputs/grid",
        FROM_CHECKPOINT,
    ),
    "dpo": Command(
        recipe_command,
        "train the baseline DPO (TRL) on a recipe's pairs, model and LoRA",
        "my.yaml --beta 0.1 --learning_rate 5e-4",
        FROM_CHECKPOINT,
    ),
    "reward": Command(
        plain_command,
        "train a reward model on preference pairs, to judge responses with",
        "--model Qwen/Qwen3-1.7B --pairs train.jsonl --output outputs/reward",
        FROM_CHECKPOINT,
    ),
}

REASONS: dict[str, Command | Group] = {
    "directions": Command(
        recipe_command,
        "fit one direction per layer from a recipe's pairs, with the evidence for it",
        "my.yaml --source instructions",
    ),
    "report": Command(
        plain_command,
        "write one page of what output folders hold, the audit first",
        "outputs/mine outputs/mine/compare --output page.html",
    ),
    "shift": Command(
        plain_command,
        "show which tokens of an aligned model its base would not have chosen",
        "--model outputs/mine --prompts prompts.jsonl --output outputs/shift",
        FROM_FILE,
    ),
    "features": Group(
        "train sparse dictionaries of hidden states, and read models with them",
        {
            "train": Command(
                plain_command,
                "train sparse dictionaries of hidden states, or of what an adapter adds to them",
                "--model Qwen/Qwen3-1.7B --text texts.jsonl --layers 14,16 --output feats",
                FROM_CHECKPOINT,
            ),
            "decompose": Command(
                plain_command,
                "write a direction as a sparse sum of a dictionary's directions",
                "outputs/mine/directions --dictionary feats/layer14_latents4096_seed0",
            ),
            "diff": Command(
                plain_command,
                "show which features moved between a base and its aligned model",
                "--model outputs/mine --dictionary feats/layer14_latents4096_seed0 "
                "--pairs test.jsonl --output moved",
            ),
            "steer": Command(
                plain_command,
                "generate while features are pinned, scaled or ablated",
                "--model Qwen/Qwen3-1.7B --dictionary feats/layer14_latents4096_seed0 "
                "--feature 17 --how ablate --prompts prompts.jsonl --output off.jsonl",
                FROM_FILE,
            ),
            "probe": Command(
                plain_command,
                "measure how well a few features distinguish labelled texts",
                "--model Qwen/Qwen3-1.7B --dictionary feats/layer14_latents4096_seed0 "
                "--texts labelled.jsonl",
            ),
            "explain": Command(
                plain_command,
                "explain features or directions in one sentence each",
                "--model Qwen/Qwen3-1.7B --dictionary feats/layer14_latents4096_seed0 "
                "--text texts.jsonl --output explained",
                FROM_FILE,
            ),
            "score": Command(
                plain_command,
                "score explanations, beside shuffled ones and random directions",
                "explained --scorer detection --judge choice:Qwen/Qwen3-8B",
                FROM_FILE,
            ),
            "logits": Command(
                plain_command,
                "show which tokens a feature raises and lowers",
                "--model Qwen/Qwen3-1.7B --dictionary feats/layer14_latents4096_seed0 --feature 17",
            ),
            "neurons": Command(
                plain_command,
                "compare the firing of features with that of neurons",
                "--model Qwen/Qwen3-1.7B --dictionary feats/layer14_latents4096_seed0 "
                "--text texts.jsonl",
            ),
            "universality": Command(
                plain_command,
                "find the features that two models share",
                "--model Qwen/Qwen3-1.7B --dictionary feats/layer14_latents4096_seed0 "
                "--other_model outputs/mine --other_dictionary other --text texts.jsonl",
            ),
            "splitting": Command(
                plain_command,
                "find the features that split in a larger dictionary",
                "--dictionary feats/layer14_latents2048_seed0 "
                "--larger feats/layer14_latents4096_seed0",
            ),
        },
    ),
    "influence": Group(
        "find the training pairs that caused what an adapter does",
        {
            "fit": Command(
                plain_command,
                "fit the curvature of a finished training",
                "--adapter outputs/mine",
                FROM_FILE,
            ),
            "score": Command(
                plain_command,
                "attribute queries to the pairs that an adapter was trained on",
                "--adapter outputs/mine --pairs test.jsonl --output causes",
            ),
            "validate": Command(
                plain_command,
                "compare influence and its rivals with retraining",
                "--adapter outputs/mine --pairs test.jsonl --output validated",
                FROM_FILE,
            ),
            "clean": Command(
                plain_command,
                "retrain with the harmful pairs dropped or flipped, and measure it",
                "--adapter outputs/mine --pairs test.jsonl --output cleaned",
                FROM_FILE,
            ),
        },
    ),
}

ELSEWHERE: dict[str, Command | Group] = {
    "export": Command(
        plain_command,
        "write an adapter or directions in the forms that other runtimes load",
        "outputs/mine --output exported",
    ),
    "push": Command(
        plain_command,
        "send an adapter or directions to the Hugging Face Hub, with a filled-in card",
        "outputs/mine me/mine --dry_run",
    ),
}

ABOUT: dict[str, Command | Group] = {
    "env": Command(plain_command, "print the versions that a bug report needs", ""),
    "completion": Command(
        plain_command, "print what turns on completion in bash, zsh or fish", "bash"
    ),
}

SECTIONS = {
    "start": START,
    "prepare and run a recipe": RECIPE,
    "look at the result, measure and compare it": RESULT,
    "see what changed, and why": REASONS,
    "use it elsewhere": ELSEWHERE,
    "this installation": ABOUT,
}
"""Commands under the headings that `rahf --help` prints."""

COMMANDS: dict[str, Command | Group] = {
    name: entry for section in SECTIONS.values() for name, entry in section.items()
}


def every_command() -> Iterator[tuple[str, Command]]:
    """Yield the words that name a command, such as `evaluate tasks`, and the command."""
    for name, entry in COMMANDS.items():
        if isinstance(entry, Group):
            yield from ((f"{name} {kind}", command) for kind, command in entry.kinds.items())
        else:
            yield name, entry
