"""How many rows there are and how long they are: measured by `rahf data` or `rahf prepare`, or
bounds.

A length is a number of tokens. Knows the limits of a recipe and the file that these commands leave;
no model, no tokenizer.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rahf.artifacts import identity_of
from rahf.data.records import read_records
from rahf.data.sources import DataSource, local_path, local_splits
from rahf.recipe.held_out import held_out_count
from rahf.recipe.recipe import Recipe

LENGTHS_FILE = "lengths.json"
INSTRUCTION_MARKERS = 16
"""Tokens that a template may put around an instruction."""


class Extent(NamedTuple):
    """A row: all of its tokens, and those of its response."""

    width: float
    response: float


@dataclass(frozen=True)
class Lengths:
    """Lengths of rows by view (`prompt`, `positive_prompt`, `negative_prompt`) and side.

    `rows` holds one mapping a sampled row, or is empty: then the recipe's limits are all there is.
    """

    rows: tuple[Mapping[str, int], ...]
    max_prompt: int
    max_length: int
    instruction: int  # tokens that an instruction adds to a prompt at most
    mean: float | None = None  # tokens of a row, given by hand

    def longest(self, view: str, sides: Iterable[str], cut: int | None) -> Extent:
        """Return the longest row and the longest response."""
        extents = self._extents(view, sides, cut)
        return Extent(*(max(column) for column in zip(*extents, strict=True)))

    def usual(self, view: str, sides: Iterable[str], cut: int | None, batch: int) -> Extent:
        """Return what a row of a batch of so many is padded to, on average."""
        extents = self._extents(view, sides, cut)
        width, response = (
            _expected_longest(column, batch) for column in zip(*extents, strict=True)
        )
        if self.mean is not None:
            width = min(self.mean, self.longest(view, sides, cut).width)
        return Extent(width, min(response, width))

    def _extents(self, view: str, sides: Iterable[str], cut: int | None) -> list[Extent]:
        if not self.rows:
            return [self._bound(view, cut)]
        limit = cut or self.max_length
        return [
            Extent(row[view] + min(row[side], limit), min(row[side], limit))
            for row in self.rows
            for side in sides
        ]

    def _bound(self, view: str, cut: int | None) -> Extent:
        if cut is None:
            return Extent(self.max_length, self.max_length - 1)  # a prompt has a token at least
        prompt = self.max_prompt + (self.instruction if view != "prompt" else 0)
        return Extent(min(self.max_length, prompt + cut), min(cut, self.max_length - 1))


def _expected_longest(values: Iterable[float], batch: int) -> float:
    """Return the mean of the largest of `batch` draws: the i-th of n values in order is it with the
    probability (i/n)^batch - ((i-1)/n)^batch.
    """
    ordered = sorted(values)
    count = len(ordered)
    return sum(
        value * ((rank / count) ** batch - ((rank - 1) / count) ** batch)
        for rank, value in enumerate(ordered, start=1)
    )


def bounds(recipe: Recipe, mean: float | None = None) -> Lengths:
    """Return the limits of a recipe."""
    data, method = recipe.data, recipe.method
    longest = max((len(text.encode()) for text in method.instructions.values()), default=0)
    # A token holds a byte at least, so that an instruction has no more tokens than bytes.
    instruction = longest + INSTRUCTION_MARKERS
    return Lengths((), data.max_prompt_length, data.max_length, instruction, mean)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return what decides the lengths: a file made with other settings is not used."""
    model, method = recipe.model, recipe.method
    instructed = method.facts.instructed
    data = {key: value for key, value in asdict(recipe.data).items() if key != "dataset_num_proc"}
    return {
        "model_name_or_path": model.model_name_or_path,
        "model_revision": model.model_revision,
        "instructions": method.instructions if instructed else None,
        **data,
        "files": [_stamps(source) for source in _sources(recipe)],
    }


def read_measured(recipe: Recipe, mean: float | None = None) -> tuple[Lengths, int] | None:
    """Return the lengths and the number of rows that were found for these settings and files."""
    path = recipe.output_dir / LENGTHS_FILE
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"] != json.loads(json.dumps(settings_of(recipe))):
        return None
    rows = tuple(dict(zip(found["columns"], row, strict=True)) for row in found["sample"])
    limits = bounds(recipe, mean)
    return (
        Lengths(rows, limits.max_prompt, limits.max_length, limits.instruction, mean),
        found["rows"],
    )


def count_rows(recipe: Recipe) -> int | None:
    """Return training rows of local data, unusable ones included; None where the data is on the
    Hub.

    A share that is held out is taken off, as if each row had a prompt of its own.
    """
    counts = [_count(source) for source in _sources(recipe)]
    if None in counts:
        return None
    shares = [source.fraction for source in _sources(recipe)]
    used = [
        count if share is None else max(1, round(share * count))
        for count, share in zip(counts, shares, strict=True)
    ]
    return sum(used) - held_out_count(recipe.data, sum(used))


def _sources(recipe: Recipe) -> list[DataSource]:
    """Return the sources of the training rows."""
    data, split = recipe.data, recipe.data.dataset_train_split
    if data.datasets is None:
        return [DataSource(data.dataset_name, data.dataset_config, split)]
    return [DataSource(**{"split": split, **part}) for part in data.datasets]


def _files(source: DataSource) -> list[Path] | None:
    """Return the files of a source's split; None for a data set of the Hub."""
    local = local_path(source)
    return None if local is None else local_splits(local)[source.split.partition("[")[0]]


def _count(source: DataSource) -> int | None:
    files = _files(source)
    return None if files is None or "[" in source.split else sum(map(_count_file, files))


def _stamps(source: DataSource) -> list[list[str | None]]:
    """Return name and identity of each file of a source: what was measured is measured anew where
    a file changed.
    """
    return [[str(file), identity_of(file)] for file in _files(source) or []]


def _count_file(path: Path) -> int:
    if path.is_dir():
        return sum(_count_arrow(file) for file in sorted(path.glob("*.arrow")))
    if path.name.endswith(".parquet"):
        from pyarrow.parquet import ParquetFile

        return ParquetFile(path).metadata.num_rows
    return sum(1 for _ in read_records(path))


def _count_arrow(path: Path) -> int:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        return sum(batch.num_rows for batch in pyarrow.ipc.open_stream(source))
