"""Options of the preference pairs, and their checks.

Knows no data and no file.
"""

from dataclasses import dataclass
from typing import Any

from rahf.recipe.fields import (
    Count,
    Share,
    describe_type,
    fits,
    option,
    raise_problems,
    value_problems,
)

MOST_HELD_OUT = 200
"""Most prompts that `test_share` holds out: more take longer and narrow the intervals little."""


@dataclass(frozen=True)
class DataOptions:
    """The preference pairs (names as in TRL's ScriptArguments)."""

    dataset_name: str | None = option(
        None,
        "Preference pairs: a Hub id, a folder saved by `datasets`, a folder of split files "
        "(train.jsonl, test.jsonl), or a json, jsonl, csv (also gzipped) or parquet file.",
    )
    dataset_config: str | None = option(None, "Configuration of a dataset on the Hub.")
    dataset_train_split: str = option("train", "Split to train on.")
    dataset_test_split: str | None = option(
        "test",
        "Split held out for evaluation. null: test_share of the training prompts is held out, as "
        "for a mixture and for local data whose only split has another name.",
    )
    test_share: Share = option(
        0.05,
        f"Share of the training prompts that is held out where no split is held out, at most "
        f"{MOST_HELD_OUT} prompts, the same for every seed; 0: none.",
    )
    datasets: list[dict] | None = option(
        None,
        "A mixture in place of dataset_name: a list of {path, name, split, columns, fraction}; "
        "only path is required.",
    )
    columns: dict[str, str] | None = option(
        None,
        "Names of the columns that hold prompt, chosen and rejected, as {wanted: given}; "
        "{chosen: rejected, rejected: chosen} swaps the sides.",
    )
    max_prompt_length: Count = option(
        256, "Tokens of a rendered prompt; a pair with a longer prompt is dropped."
    )
    max_length: Count = option(
        768, "Tokens of prompt and response together; a longer response is truncated."
    )
    chat_template: str | None = option(
        None,
        "Jinja text, a file with it, or the name of one of the tokenizer's; null: the tokenizer's "
        "own, or the plain template where it has none.",
    )
    dataset_num_proc: Count | None = option(None, "Processes that tokenise; null: one.")
    split_between_stages: bool = option(
        False,
        "Train the teachers on one half of the rows and the policy on the other (as published); "
        "false: all rows for both.",
    )

    def __post_init__(self):
        raise_problems(value_problems(self, DataOptions) or data_problems(self))


def data_problems(data: "DataOptions") -> list[str]:
    problems = column_problems("columns", data.columns)
    if data.dataset_name is None and data.datasets is None:
        problems.append("no data: give dataset_name, or datasets for a mixture")
    if data.dataset_name is not None and data.datasets is not None:
        problems.append("dataset_name and datasets are both given: keep one of them")
    if data.datasets is not None and data.dataset_test_split not in (None, "test"):
        problems.append(
            f"dataset_test_split: {data.dataset_test_split} is not read beside a mixture, of which "
            "test_share is held out: remove it"
        )
    if data.datasets is not None and data.columns is not None:
        problems.append(
            "columns does not apply to a mixture: give columns inside the entries of datasets"
        )
    if data.max_prompt_length >= data.max_length:
        problems.append(
            f"max_prompt_length: {data.max_prompt_length} leaves no room for a response within "
            f"max_length {data.max_length}: lower the first or raise the second"
        )
    if data.datasets is not None:
        problems += ["datasets: the list is empty"] if not data.datasets else []
        problems += [
            line
            for index, part in enumerate(data.datasets)
            for line in part_problems(f"datasets[{index}]", part)
        ]
    return problems


def part_problems(where: str, part: Any) -> list[str]:
    """Return problems of one entry of a mixture."""
    known = {
        "path": str,
        "name": str | None,
        "split": str,
        "columns": dict | None,
        "fraction": float,
    }
    if not isinstance(part, dict):
        return [f"{where}: {part!r} is not a mapping with the keys {', '.join(known)}"]
    problems = [
        f"{where}: unknown key {key!r}, known are {', '.join(known)}"
        for key in part
        if key not in known
    ]
    problems += [
        f"{where}.{key}: {part[key]!r} is not {describe_type(kind)}"
        for key, kind in known.items()
        if key in part and not fits(part[key], kind)
    ]
    if "path" not in part:
        problems.append(f"{where}: path is missing; it takes what dataset_name takes")
    if not problems:
        problems = column_problems(f"{where}.columns", part.get("columns"))
        if not 0 < part.get("fraction", 1) <= 1:
            problems.append(
                f"{where}.fraction: {part['fraction']} is out of range, it must be above 0 and at "
                "most 1"
            )
    return problems


def column_problems(where: str, columns: dict | None) -> list[str]:
    wanted = ("prompt", "chosen", "rejected", "system", "tools")
    return [
        f"{where}: {key!r}: {value!r} does not map one of {', '.join(wanted)} to the name of a "
        "given column"
        for key, value in (columns or {}).items()
        if key not in wanted or not isinstance(value, str)
    ]
