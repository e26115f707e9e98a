"""The command `rahf`: finds the command that is named, runs it, prints its error as one line.

Only the module of the command that is named is imported; `commands.table` lists them.
"""

import argparse
import os
import sys
import textwrap
import traceback
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from types import MappingProxyType
from typing import Any, NoReturn

from rahf.commands.options.parsers import CommandParser
from rahf.commands.table import COMMANDS, FROM_START, SECTIONS, Command, Group
from rahf.foreign_warnings import ignore_foreign_warnings
from rahf.records.command_line import running
from rahf.report.escaping import is_utf8
from rahf.report.terminal import ReaderGoneError, leave_quietly, plain_output, quiet

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
rahf COMMAND --help has the options and an example.
Exit status: 0 done, or a training stopped by SIGTERM with a checkpoint; 1 not valid (validate), or
  a rank was killed; 2 cannot be run, the reason is one line on stderr; 130 interrupted; 141 what
  reads the output has closed it; 128 + N signal N. --traceback shows where an error came from."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, one of `STATUSES`."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if "_ARGCOMPLETE" in os.environ:  # set by the shell function of `rahf completion`
        from rahf.commands.completion import complete

        complete(_tree)
    ignore_foreign_warnings()
    try:
        with quiet("--quiet" in given), plain_output(), running(["rahf", *given]):
            return _run(given)
    except ReaderGoneError:
        leave_quietly()
        return 141


def _run(given: Sequence[str]) -> int:
    """Run the command; what ends it becomes one line and a status."""
    options = argparse.Namespace(traceback="--traceback" in given, interrupted=FROM_START)
    try:
        _check_utf8(given)
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


def _check_utf8(given: Sequence[str]) -> None:
    """Refuse words that no file of a result and no tokenizer could hold."""
    for word in given:
        if not is_utf8(word):
            raise ValueError(f"{word!r} is not UTF-8 text: write it as UTF-8, or rename the file.")


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process, which may be one of several ranks.

    A rank that has done its part leaves the group first: threads of the group that are still there
    when Python ends can abort a process whose work is saved.
    """
    try:
        status: str | int | None = main(arguments)
    except SystemExit as end:
        status = end.code
    torch = sys.modules.get("torch")
    if not status and torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; of the commands, only the one named in `given` has its options."""
    words = [word for word in given if not word.startswith("-")]
    parser = _tree(words)
    if words and words[0] not in COMMANDS:
        parser.error(_unknown("command", words[0], COMMANDS, OTHER_COMMANDS))
    group = COMMANDS[words[0]] if words else None
    if isinstance(group, Group) and words[1:] and words[1] not in group.kinds:
        parser.error(_unknown(f"kind of {words[0]}", words[1], group.kinds))
    if isinstance(group, Group) and not words[1:] and not {"-h", "--help"} & {*given}:
        parser.error(f"which kind of {words[0]}? choose from {', '.join(group.kinds)}")
    return parser


def _tree(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of all commands, with the options of the one that `words` name."""
    parser = argparse.ArgumentParser(
        prog="rahf",
        usage="rahf [-h] [--version] COMMAND ...",
        description=f"Preference pairs in, aligned adapter out.\n\n{_sections()}",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version")
    commands = parser.add_subparsers(
        metavar="COMMAND",
        help=argparse.SUPPRESS,
        required=True,
        parser_class=CommandParser,
        prog="rahf",
    )
    _add(commands, COMMANDS, words)
    return parser


def _sections() -> str:
    """Return the commands under their headings."""
    lines = []
    for title, commands in SECTIONS.items():
        lines += ["", f"{title}:"]
        for name, entry in commands.items():
            first, rest = f"  {name:<11} ", " " * 14
            lines += textwrap.wrap(entry.summary, 96, initial_indent=first, subsequent_indent=rest)
    return "\n".join(lines[1:])


def _unknown(
    what: str, word: str, known: Iterable[str], others: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return what is wrong with a word that names nothing, with what was probably meant."""
    meant = others.get(word) or next(iter(get_close_matches(word, known, n=1)), None)
    hint = f"did you mean {meant}?" if meant else f"choose from {', '.join(known)}"
    return f"unknown {what} {word}, {hint}"


def _add(
    commands: "argparse._SubParsersAction[Any]",
    table: Mapping[str, Command | Group],
    words: Sequence[str],
    prefix: str = "",
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
            call = f"rahf {prefix.replace('_', ' ')}{name} {entry.example}".rstrip()
            parser.epilog = "\n\n".join(filter(None, (f"example:\n  {call}", parser.epilog)))
        else:
            commands.add_parser(name, help=entry.summary)


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
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
