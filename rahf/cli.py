"""The command `rahf`: gathers the commands, runs the one that is named, tells users' errors.

The commands themselves, their options and what they call, are in `commands`.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from rahf.commands import (
    align,
    compare,
    data,
    directions,
    dpo,
    evaluate,
    export,
    generate,
    plan,
    push,
    reward,
    shift,
    sweep,
    validate,
)
from rahf.foreign_warnings import ignore_foreign_warnings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: 0, 1 (not valid), 2 (cannot be run)."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    ignore_foreign_warnings()
    options, unread = _parser("align" in given[:1]).parse_known_args(given)
    try:
        return options.run(options, unread)
    except (ValueError, OSError) as error:
        if options.traceback:
            traceback.print_exc()
        if not _told_to_launcher(error):
            print(f"error: {_told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        if not _told_to_launcher(error):
            raise
        return 1


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


def _told_to_launcher(error: Exception) -> bool:
    """Whether a launcher of ours prints the error, once for all ranks."""
    if "RAHF_LAUNCHED" not in os.environ:
        return False
    from rahf.distributed.launching import tell_launcher

    tell_launcher(error)
    return True


def _told(error: Exception) -> str:
    # Text without the number that the system gives an error: "No space left on device: 'x'".
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _parser(with_keys: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rahf",
        description="Preference pairs in, aligned adapter out.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    align.add(commands, with_keys=with_keys)
    for command in (
        data,
        plan,
        validate,
        generate,
        directions,
        shift,
        evaluate,
        reward,
        dpo,
        compare,
        export,
        push,
        sweep,
    ):
        command.add(commands)
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser, *_):
        import rahf

        print(rahf.__version__)
        parser.exit()
