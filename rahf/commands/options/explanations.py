"""Options of the commands that ask language models about features, and of those that show
explanations beside numbers.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rahf.commands.options.models import device, loading


def asking_options(parser: argparse.ArgumentParser) -> None:
    """Add what a language model behind a URL needs, and what it costs."""
    option = parser.add_argument_group("a language model behind a URL").add_argument
    option("--url", metavar="URL", help="URL of api:MODEL, without /chat/completions")
    option("--workers", metavar="N", type="count", default=8, help="requests at once (default: 8)")
    for side in ("input", "output"):
        option(
            f"--{side}_price",
            metavar="X",
            type="number from zero",
            help=f"price of a million {side} tokens, for the cost",
        )


def named_model(options: argparse.Namespace, name: str):
    """Return the judge of a name with what the options say of it."""
    from rahf.judges.by_name import NamedJudge

    return NamedJudge(
        name,
        device(options),
        options.url,
        options.workers,
        batch_size=options.batch_size,
        loading=loading(options),
    )


def prices(options: argparse.Namespace) -> tuple[float, float] | None:
    """Return both prices; None where they are not given.

    Raises:
        ValueError: only one of them is given.
    """
    given = (options.input_price, options.output_price)
    if given == (None, None):
        return None
    if None in given:
        raise ValueError("--input_price and --output_price make a cost together: give both.")
    return given


def explanations_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--explanations",
        metavar="FILE",
        type=Path,
        help="explanations.jsonl or scores.jsonl of rahf features explain and score, shown beside "
        "the numbers",
    )


def known_explanations(options: argparse.Namespace) -> dict[int, dict[str, Any]] | None:
    """Return the explained features of --explanations by their number; None: it is not given.

    Raises:
        ValueError: the file holds no explanations, or those of another dictionary.
    """
    from rahf.artifacts import expanded, identity_of

    if options.explanations is None:
        return None
    lines, made_from = read_explained(options.explanations)
    folder = expanded(options.dictionary)
    here = identity_of(folder) if folder.exists() else options.dictionary
    if made_from.get("dictionary") not in (None, here):
        raise ValueError(
            f"{options.explanations} explains features of another dictionary than "
            f"{options.dictionary}: give the explanations of this one."
        )
    return {line["number"]: line for line in lines if line["kind"] == "feature"}


def read_explained(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the lines of a file of explanations, and what they were made from.

    Raises:
        ValueError: the file is missing, or none of explanations; a line is damaged.
    """
    from rahf.artifacts import read_object
    from rahf.interpret.explanations.lines import read_each, scored_line

    if not path.is_file():
        raise ValueError(f"There is no file {path}; give explanations.jsonl or scores.jsonl.")
    run = path.with_name(f"{path.name}.run.json")
    remedy = "Delete it, and run the command again that made it"
    lines = list(read_each(path, scored_line, "an explanation", remedy)) if run.is_file() else []
    if not lines:
        raise ValueError(
            f"{path} holds no explanations: give explanations.jsonl or scores.jsonl of rahf "
            "features explain and score."
        )
    remedy = f"Delete it and {path.name} to make them again."
    return lines, read_object(run, remedy, made_from=dict)["made_from"]


def with_explanations(
    rows: list[dict[str, Any]], known: Mapping[int, Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """Return rows of figures of features with their explanations and scores, where any are given;
    an explanation is None where there is none.
    """
    if known is None:
        return rows
    found = [known.get(row["feature"], {}) for row in rows]
    missing = sum(line.get("explanation") is None for line in found)
    if missing:
        print(f"note: {missing} of {len(rows)} features are unexplained", file=sys.stderr)
    return [
        row | {"explanation": line.get("explanation"), "scores": line.get("scores")}
        for row, line in zip(rows, found, strict=True)
    ]
