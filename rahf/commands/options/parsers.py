"""The shapes of a command: one that is given a recipe and overrides of its keys, and one with
options of its own. Each function makes the parser and sets its `run`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rahf.commands.options.numbers import NUMBERS
from rahf.commands.options.other_names import hint
from rahf.records.makers import holds, refuse_other_maker
from rahf.report.terminal import is_quiet

Run = Callable[[argparse.Namespace], int]
"""Options -> exit status; what was given and is not read by the parser is `options.overrides`."""

WITHOUT_RESULTS = {"dictionary", "other_dictionary", "untrained_dictionary", "larger"}
WITHOUT_RESULTS |= {"directions", "pairs", "dataset", "text"}
"""Options whose folder is identified by all files in it, so that no result belongs there."""

OVERRIDES = (
    "Every key of the recipe can be overridden: --alpha 3, --teachers.learning_rate=1e-4, --bf16\n"
    "(true). Values are read as YAML."
)


class CommandParser(argparse.ArgumentParser):
    """A parser whose error also names all unknown options, which argparse reports last."""

    takes_keys = True  # what is no option is a key of a recipe
    given: Sequence[str] = ()

    def parse_known_args(self, args=None, namespace=None):
        self.given = args or ()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        places = sum(not action.option_strings for action in self._actions)
        unknown = [] if self.takes_keys else _unknown(self.given, self, places)
        super().error("; ".join([*unknown, message]))

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """End the program with all that was given and is not known."""
        super().error("; ".join(_unknown(unknown, self, 0)))


def recipe_command(
    commands, name: str, summary: str, run: Callable[..., int]
) -> argparse.ArgumentParser:
    """Add a command that is given a recipe, which is checked, with its overrides, before `run`."""

    def with_recipe(options: argparse.Namespace) -> int:
        from rahf.recipe.files import checked_recipe, not_read

        recipe = checked_recipe(options.recipe, options.overrides)
        for line in () if is_quiet() else not_read(recipe):
            print(f"note: {line}", file=sys.stderr)
        _refuse_other_result(options)
        return run(recipe, options)

    return recipe_file_command(commands, name, summary, with_recipe)


def recipe_file_command(commands, name: str, summary: str, run: Run) -> argparse.ArgumentParser:
    """Add a command that reads `options.recipe`, a path, and `options.overrides` itself."""
    parser = _command(commands, name, summary)
    parser.epilog = OVERRIDES
    parser.usage = f"rahf {name} RECIPE.yaml [--KEY VALUE ...]"
    parser.add_argument("recipe", metavar="RECIPE.yaml", type=Path, help="file of the recipe")
    parser.set_defaults(run=run)
    return parser


def launch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the number of processes and their engine."""
    add = parser.add_argument
    add(
        "--accelerate_config",
        metavar="NAME",
        help="configuration: a file, or NAME of accelerate_configs/",
    )
    add("--num_processes", metavar="N", type="count", help="processes, one per device")


def plain_command(commands, name: str, summary: str, run: Run) -> argparse.ArgumentParser:
    """Add a command with options of its own; an option that it does not have is refused.

    `check`, where a group of options sets it, is called before `run`.
    """
    parser = _command(commands, name, summary)

    def known_options_only(options: argparse.Namespace) -> int:
        if options.overrides:
            parser.refuse(options.overrides)
        _refuse_other_result(options)
        options.check(options)
        return run(options)

    parser.takes_keys = False
    parser.set_defaults(run=known_options_only, check=lambda _: None)
    return parser


def _refuse_other_result(options: argparse.Namespace) -> None:
    """Refuse an --output that holds the result of another command, before anything is loaded."""
    output, given = vars(options).get("output"), vars(options)
    if output is None:
        return
    if output.is_symlink() and not output.is_dir():  # the link stays, its file is written
        output = options.output = output.resolve()
    for name in sorted(WITHOUT_RESULTS & given.keys()):
        named = given[name] if isinstance(given[name], list) else [given[name]]
        folder = next((each for each in named if each and holds(each, output)), None)
        if folder is not None:
            raise ValueError(
                f"--output {output} is in {folder}, which --{name} reads: what is written there "
                "would count as a part of it. Give a folder of its own."
            )
    source = given.get("source")
    if isinstance(source, Path):  # of export, which may write a vector beside its directions
        source = source.parent if source.is_file() else source
        if source.resolve() == output.resolve():
            return
    refuse_other_maker(output, options.command)


def _command(commands, name: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=parser.prog)
    for kind, read in NUMBERS.items():
        parser.register("type", kind, read)
    parser.register("type", Path, _path)
    parser.register("type", "name", _name)
    # Not named --debug: that is a key of TrainingArguments.
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=os.environ.get("RAHF_DEBUG", "0") not in ("", "0"),
        help="show where an error came from (also: RAHF_DEBUG=1)",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print results and errors, no progress and no notes (also: RAHF_QUIET=1)",
    )
    return parser


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a name")
    return text


def _path(text: str) -> Path:
    return Path(_name(text))  # of an empty text, the current folder


def _unknown(words: Sequence[str], parser: argparse.ArgumentParser, places: int) -> list[str]:
    """Return a line for each unknown option among the words, and for each that belongs to none.

    places: arguments without an option that are among the words.
    """
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        action = parser._option_string_actions.get(name)
        if word.startswith("-") and len(word) > 1 and not word[1:2].isdigit():
            if action is None:
                found.append(f"unknown argument {word}{hint(name, parser)}")
            taken = 0 if value else 1 if action is None or action.nargs is None else action.nargs
            while rest and not rest[0].startswith("--") and taken:
                rest.pop(0)
                taken = taken - 1 if isinstance(taken, int) else taken
        elif places:
            places -= 1
        else:
            found.append(f"unexpected argument {word}{_home(word, words, parser)}")
    return found


def _home(word: str, words: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Return the first required option that is not given, of which a word may be the value."""
    given = {each.partition("=")[0] for each in (*words, *parser.given)}
    for action in parser._actions:
        if action.required and action.option_strings and not given & {*action.option_strings}:
            return f", did you mean {action.option_strings[0]} {word}?"
    return ""
