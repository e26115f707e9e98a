"""The option for figures as a file, beside the table that is printed."""

import argparse
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any


def figures_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FILE", type=Path, help="JSON file for the figures")


def tell_figures(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], tuple[Mapping[str, Any], str]],
) -> int:
    """Measure, write the figures where a file is given for them, and print the table.

    Args:
        measure: options -> figures and table; runs while the file is locked.

    Raises:
        ValueError: another process makes the file.
    """
    from rahf.artifacts import alone, write_json

    with alone(options.output, wait=False) if options.output else nullcontext():
        figures, table = measure(options)
        if options.output:
            write_json(options.output, figures)
    print(table)
    return 0
