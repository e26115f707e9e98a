"""The option for figures as a file, beside the table that is printed."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def figures_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FILE", type=Path, help="JSON file for the figures")


def tell_figures(options: argparse.Namespace, figures: Mapping[str, Any], table: str) -> None:
    """Write the figures where a file is given for them, and print the table."""
    if options.output is not None:
        from rahf.artifacts import write_json

        write_json(options.output, figures)
    print(table)
