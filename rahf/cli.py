"""The command `rahf`: finds the command that is named, runs it, prints its error as one line.

Each command is a module of `commands` with `add_options(parser)` and `run`. Only the module of the
command that is named is imported.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from rahf.commands.options.parsers import (
    CommandParser,
    plain_command,
    recipe_command,
    recipe_file_command,
)
from rahf.foreign_warnings import ignore_foreign_warnings
from rahf.report.made_by import running
from rahf.report.terminal import ReaderGoneError, leave_quietly, plain_output

FROM_CHECKPOINT = "the same command resumes from the last checkpoint"
FROM_FILE = "the same command resumes where it stopped"
FROM_START = "the same command starts from the beginning"

OTHER_COMMANDS = {
    "dataset": "data",
    "eval": "evaluate",
    "finetune": "align, or compare with a row sft",
    "merge": "export",
    "run": "align",
    "sft": "compare, with a row sft",
    "steer": "generate --directions",
    "train": "align, or compare for baselines",
    "upload": "push",
}
"""Names of commands elsewhere, with what does it here."""

STATUSES = """\
Exit status: 0 done, or a training stopped by SIGTERM with a checkpoint; 1 not valid (validate), or
  a rank was killed; 2 cannot be run, the reason is one line on stderr; 130 interrupted; 141 what
  reads the output has closed it; 128 + N signal N. --traceback shows where an error came from."""


class Command(NamedTuple):
    """A command, whose module has its name."""

    parser: Callable[..., argparse.ArgumentParser]  # makes its parser; determines what `run` gets
    summary: str
    interrupted: str = FROM_START


class Group(NamedTuple):
    """A command of several kinds: `rahf evaluate tasks` is in the module `evaluate_tasks`."""

    summary: str
    kinds: Mapping[str, Command]


COMMANDS: dict[str, Command | Group] = {
    "align": Command(
        recipe_command, "run the stages of a recipe that are not done yet", FROM_CHECKPOINT
    ),
    "data": Command(recipe_command, "show what a recipe's data becomes: counts, lengths, rows"),
    "prepare": Command(recipe_command, "tokenise a recipe's data into the cache, nothing else"),
    "plan": Command(recipe_command, "report what a recipe will cost, without loading weights"),
    "validate": Command(
        recipe_file_command, "report every problem of a recipe, without running it"
    ),
    "generate": Command(
        plain_command, "write a model's responses to the prompts of a file", FROM_FILE
    ),
    "directions": Command(
        recipe_command,
        "fit one direction per layer from a recipe's pairs, with the evidence for it",
    ),
    "screen": Command(
        plain_command, "forecast which traits a data set will move, before any training"
    ),
    "shift": Command(
        plain_command,
        "show which tokens of an aligned model its base would not have chosen",
        FROM_FILE,
    ),
    "features": Group(
        "train sparse dictionaries of hidden states, and read models with them",
        {
            "train": Command(
                plain_command,
                "train sparse dictionaries of hidden states, or of what an adapter adds to them",
                FROM_CHECKPOINT,
            ),
            "decompose": Command(
                plain_command, "write a direction as a sparse sum of a dictionary's directions"
            ),
            "diff": Command(
                plain_command, "show which features moved between a base and its aligned model"
            ),
            "steer": Command(
                plain_command, "generate while features are pinned, scaled or ablated", FROM_FILE
            ),
            "probe": Command(
                plain_command, "measure how well a few features distinguish labelled texts"
            ),
            "explain": Command(
                plain_command,
                "explain features or directions in one sentence each",
                FROM_FILE,
            ),
            "score": Command(
                plain_command,
                "score explanations, beside shuffled ones and random directions",
                FROM_FILE,
            ),
            "logits": Command(plain_command, "show which tokens a feature raises and lowers"),
            "neurons": Command(
                plain_command, "compare the firing of features with that of neurons"
            ),
            "universality": Command(plain_command, "find the features that two models share"),
            "splitting": Command(
                plain_command, "find the features that split in a larger dictionary"
            ),
        },
    ),
    "influence": Group(
        "find the training pairs that caused what an adapter does",
        {
            "fit": Command(plain_command, "fit the curvature of a finished training", FROM_FILE),
            "score": Command(
                plain_command, "attribute queries to the pairs that an adapter was trained on"
            ),
            "validate": Command(
                plain_command, "compare influence and its rivals with retraining", FROM_FILE
            ),
            "clean": Command(
                plain_command,
                "retrain without, or with turned, the pairs that hurt, and measure it",
                FROM_FILE,
            ),
        },
    ),
    "evaluate": Group(
        "measure a model's preferences, judge responses, run tasks",
        {
            "preferences": Command(
                plain_command,
                "measure whether a model finds chosen responses likelier than rejected ones",
            ),
            "responses": Command(
                plain_command,
                "let a judge score responses, or decide between those of two files",
                f"{FROM_START}, except for what is kept in --verdicts",
            ),
            "tasks": Command(
                plain_command, "run tasks of lm-evaluation-harness (pip install 'rahf[eval]')"
            ),
        },
    ),
    "reward": Command(
        plain_command,
        "train a reward model on preference pairs, to judge responses with",
        FROM_CHECKPOINT,
    ),
    "dpo": Command(
        recipe_command,
        "train the baseline DPO (TRL) on a recipe's pairs, model and LoRA",
        FROM_CHECKPOINT,
    ),
    "compare": Command(
        recipe_file_command,
        "train and measure methods and baselines side by side: the rows of the section compare",
        FROM_CHECKPOINT,
    ),
    "report": Command(plain_command, "write one page of what output folders hold, the audit first"),
    "export": Command(
        plain_command, "write an adapter or directions in the forms that other runtimes load"
    ),
    "push": Command(
        plain_command,
        "send an adapter or directions to the Hugging Face Hub, with a filled-in card",
    ),
    "sweep": Command(
        recipe_file_command,
        "run a recipe with every combination of the values given: --alpha 1,2,5",
        FROM_CHECKPOINT,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, one of `STATUSES`."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    ignore_foreign_warnings()
    try:
        with plain_output(), running(["rahf", *given]):
            return _run(given)
    except ReaderGoneError:
        leave_quietly()
        return 141


def _run(given: Sequence[str]) -> int:
    """Run the command; what ends it becomes one line and a status."""
    options = argparse.Namespace(traceback="--traceback" in given, interrupted=FROM_START)
    try:
        options, overrides = _parser(given).parse_known_args(given)
        options.overrides = overrides
        return options.run(options)
    except ReaderGoneError:
        raise
    except KeyboardInterrupt:
        print(f"interrupted; {options.interrupted}", file=sys.stderr)
        return 130
    except Exception as error:
        from rahf.commands.failures import message_of

        if options.traceback:
            traceback.print_exc()
        if not _left_to_launcher(error):
            print(f"error: {message_of(error)}", file=sys.stderr)
        return 2


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process, which may be one of several ranks.

    A rank that has done its part leaves the group first: threads of the group that are still there
    when Python ends can abort a process whose work is saved.
    """
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    torch = sys.modules.get("torch")
    if not status and torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; of the commands, only the one named in `given` has its options."""
    parser = argparse.ArgumentParser(
        prog="rahf",
        description="Preference pairs in, aligned adapter out.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version")
    words = [word for word in given if not word.startswith("-")]
    if words and words[0] not in COMMANDS:
        parser.error(_unknown("command", words[0], COMMANDS, OTHER_COMMANDS))
    group = COMMANDS[words[0]] if words else None
    if isinstance(group, Group) and words[1:] and words[1] not in group.kinds:
        parser.error(_unknown(f"kind of {words[0]}", words[1], group.kinds))
    if isinstance(group, Group) and not words[1:] and not {"-h", "--help"} & {*given}:
        parser.error(f"which kind of {words[0]}? choose from {', '.join(group.kinds)}")
    kinds = {"required": True, "parser_class": CommandParser}
    _add(parser.add_subparsers(metavar="COMMAND", **kinds), COMMANDS, words)
    return parser


def _unknown(
    what: str, word: str, known: Iterable[str], others: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return what is wrong with a word that names nothing, with what was probably meant."""
    meant = others.get(word) or next(iter(get_close_matches(word, known, n=1)), None)
    hint = f"did you mean {meant}?" if meant else f"choose from {', '.join(known)}"
    return f"unknown {what} {word}, {hint}"


def _add(
    commands, table: Mapping[str, Command | Group], words: Sequence[str], prefix: str = ""
) -> None:
    """Add every command of the table, with options for the one that `words` name."""
    for name, entry in table.items():
        if isinstance(entry, Group):
            kinds = commands.add_parser(name, help=entry.summary).add_subparsers(
                metavar="WHAT", required=True
            )
            _add(kinds, entry.kinds, words[1:] if words[:1] == [name] else [], f"{name}_")
        elif words[:1] == [name]:
            module = import_module(f"rahf.commands.{prefix}{name}")
            parser = entry.parser(commands, name, entry.summary, module.run)
            parser.set_defaults(interrupted=entry.interrupted)
            module.add_options(parser)
        else:
            commands.add_parser(name, help=entry.summary)


class _Version(argparse.Action):
    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser, *_):
        import rahf

        print(rahf.__version__)
        parser.exit()


def _left_to_launcher(error: Exception) -> bool:
    """Return whether a launcher of rahf prints the error, once for all ranks."""
    if "RAHF_LAUNCHED" not in os.environ:
        return False
    from rahf.commands.failures import message_of
    from rahf.distributed.launching import leave_to_launcher

    known = isinstance(error, ValueError | OSError)
    return leave_to_launcher(error if known else ValueError(message_of(error)))
