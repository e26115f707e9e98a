"""The two shapes of a command: one that takes a recipe and overrides of its keys, and one with
options of its own.
"""

import argparse
import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

OVERRIDES = (
    "Every key of the recipe can be set anew: --alpha 3, --teachers.learning_rate=1e-4, --bf16\n"
    "(true). Values are read as YAML."
)


def recipe_command(
    commands,
    name: str,
    help: str,
    run: Callable[[argparse.Namespace, list[str]], int],
    options: str = "",
) -> argparse.ArgumentParser:
    """Add a command that is given a recipe; `run` gets its options and the overrides, unread.

    Args:
        options: the command's own options as the usage line shows them.
    """
    parser = _command(commands, name, help, epilog=OVERRIDES)
    parser.usage = f"rahf {name} RECIPE.yaml{options} [--KEY VALUE ...]"
    parser.add_argument("recipe", metavar="RECIPE.yaml", type=Path, help="file of the recipe")
    parser.set_defaults(run=run)
    return parser


def launch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say on how many processes, and under which engine."""
    add = parser.add_argument
    add("--accelerate_config", metavar="NAME", help="a file, or NAME of accelerate_configs/")
    add("--num_processes", metavar="N", type=int, help="processes, one a device")


def plain_command(
    commands, name: str, help: str, run: Callable[[argparse.Namespace], int], epilog: str = ""
) -> argparse.ArgumentParser:
    """Add a command with options of its own; one that it does not know is refused."""
    parser = _command(commands, name, help, epilog=epilog)

    def known_options_only(options: argparse.Namespace, unknown: list[str]) -> int:
        if unknown:
            parser.error(_unknown(unknown[0], parser))
        return run(options)

    parser.set_defaults(run=known_options_only)
    return parser


def _command(commands, name: str, help: str, epilog: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Not named --debug: that is a key of TrainingArguments.
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=os.environ.get("RAHF_DEBUG", "0") not in ("", "0"),
        help="show where an error came from (also: RAHF_DEBUG=1)",
    )
    return parser


def _unknown(argument: str, parser: argparse.ArgumentParser) -> str:
    name = argument.partition("=")[0]
    near = get_close_matches(name, parser._option_string_actions, n=1)
    return f"unknown argument {argument}" + (f", did you mean {near[0]}?" if near else "")
