"""The option for figures as a file, beside the table that is printed."""

import argparse
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rahf.artifacts import alone, expanded
from rahf.records.makers import makers


def figures_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FILE", type=Path, help="JSON file for the figures")


def print_figures(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], tuple[Mapping[str, Any], str]],
) -> int:
    """Measure, write the figures where a file is given for them, and print the table.

    Args:
        measure: options -> figures and table; runs while the file is locked.

    Raises:
        ValueError: another process makes the file; it holds something other than figures, or is
            named by another option.
    """
    from rahf.records.command_line import write_result

    if options.output:
        refuse_other_file(options)
    with alone(options.output, wait=False) if options.output else nullcontext():
        figures, table = measure(options)
        if options.output:
            write_result(options.output, options.command, figures)
    print(table)
    return 0


def refuse_other_file(options: argparse.Namespace) -> None:
    """Refuse an --output that another option names, or that holds no figures."""
    output = options.output
    for name, value in vars(options).items():
        # "references:FILE" names a file too.
        texts = [] if name == "output" else [str(value), str(value).partition(":")[2]]
        paths = [os.path.realpath(expanded(text)) for text in texts if text]
        if str(output.resolve()) in paths:
            raise ValueError(f"--output {output} is what --{name} names; give another file.")
    if output.exists() and not _holds_figures(output, options.command):
        raise ValueError(
            f"{output} already exists and holds no figures of this command; give another "
            "--output, or delete it."
        )


def _holds_figures(path: Path, command: str) -> bool:
    """Return whether a file is empty, or holds figures of this command."""
    return path.is_file() and (not path.read_bytes().strip() or command in makers(path))
