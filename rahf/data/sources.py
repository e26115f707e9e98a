"""Where pairs come from: the Hub, folders saved by `datasets`, folders of split files, single
files, mixtures of them.

Every source gives normalised pairs (see `pairs`): all its rows in their order, the unusable ones
marked with a reason. Nothing is held in memory: pairs live in Arrow files that are written once and
found again. Knows no method, no tokenizer and no model.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rahf.artifacts import expanded, identity_of, read_object
from rahf.data.hub import ask_hub, ask_no_more, near_name
from rahf.data.pairs import (
    PAIR_FORM_VERSION,
    check_columns,
    normalize_pairs,
    normalize_row,
    pair_features,
)
from rahf.data.records import RECORD_SUFFIXES, read_records

if TYPE_CHECKING:
    from datasets import Dataset

FILE_SUFFIXES = (*RECORD_SUFFIXES, ".parquet")

_SHARD = re.compile(r"-\d{5}-of-\d{5}.*")


@dataclass(frozen=True)
class DataSource:
    """One source of pairs, with the names of TRL's `DatasetConfig`.

    `path`: a data set of the Hub, a folder or a file; `name`: its configuration (a local folder:
    the sub-folder); `split`: may carry a slice as `datasets` writes it, "train[:10%]"; `columns`:
    {wanted: given}, so that {"chosen": "rejected", "rejected": "chosen"} swaps the sides;
    `fraction`: the share of this source's rows that is used.
    """

    path: str
    name: str | None = None
    split: str = "train"
    columns: Mapping[str, str] | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(
                f"fraction is {self.fraction}; give the share of {self.path} to use, "
                "above 0 and at most 1."
            )
        if self.columns is not None and not isinstance(self.columns, Mapping):
            raise ValueError(
                f"columns is {self.columns!r}; give a mapping of wanted names to those in "
                f"{self.path}."
            )


def load_pairs(
    path: str | Path,
    *,
    name: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    cache_dir: str | Path | None = None,
) -> "Dataset":
    """Return the normalised pairs of one source; `row` is the index in the split as loaded.

    Raises ValueError when nothing is at `path`, the split does not exist, a line cannot be read,
    columns are missing or have the wrong type, or there are no rows.
    """
    source = DataSource(str(path), name, split, columns)
    local = local_path(source)
    if local is None:
        return _load_from_hub(source, cache_dir)
    wanted, bracket, _ = split.partition("[")
    splits = local_splits(local)
    if wanted not in splits:
        raise ValueError(f"{path} has no split {wanted!r}. {_described(local, splits)}")
    pairs = _load_local(local, splits[wanted], source, cache_dir)
    return _slice(pairs, wanted, split) if bracket else pairs


def load_mixture(
    sources: Sequence[DataSource], *, seed: int = 0, cache_dir: str | Path | None = None
) -> "Dataset":
    """Return several sources in one: a seeded choice of each source's fraction, shuffled.

    `row` counts across all rows of the sources in the order given, and so identifies the origin of
    a row: with 100 rows in the first source, row 103 is the fourth row
    of the second.
    """
    from datasets import concatenate_datasets

    if not sources:
        raise ValueError("datasets is empty; give at least one {path, ...}.")
    parts, first_row = [], 0
    for position, source in enumerate(sources):
        pairs = load_pairs(
            source.path,
            name=source.name,
            split=source.split,
            columns=source.columns,
            cache_dir=cache_dir,
        )
        part = _count_rows_from(first_row, pairs)
        first_row += len(pairs)
        if source.fraction is not None:
            generator = np.random.default_rng([seed, position])
            count = max(1, round(source.fraction * len(pairs)))
            part = part.select(sorted(generator.permutation(len(pairs))[:count].tolist()))
        parts.append(part)
    mixture = concatenate_datasets(parts)
    order = np.random.default_rng([seed, len(sources)]).permutation(len(mixture))
    return mixture.select(order.tolist())


def local_path(source: DataSource) -> Path | None:
    """Return the file or folder meant; None for a data set of the Hub.

    Raises ValueError for a path that can only be local and where nothing is.
    """
    local = expanded(source.path)
    if local.exists():
        inner = local / source.name if source.name else local
        if not inner.exists():
            raise ValueError(f"{source.path} has no configuration (sub-folder) {source.name!r}.")
        return inner
    path = source.path
    if path.startswith((".", "/", "~")) or path.endswith(FILE_SUFFIXES) or path.count("/") > 1:
        raise ValueError(f"There is no file or folder {source.path}.")
    return None


def local_splits(local: Path) -> dict[str, list[Path]]:
    """Return {split: its files}; for what `datasets` saved, the folder that holds it."""
    if local.is_file():
        if not local.name.endswith(FILE_SUFFIXES):
            raise ValueError(
                f"{local} is not a data file: its name should end in one of "
                f"{', '.join(FILE_SUFFIXES)}."
            )
        return {"train": [local]}
    if (local / "dataset_dict.json").is_file():
        saved = read_object(local / "dataset_dict.json", "Save the data set again.", splits=list)
        return {split: [local / split] for split in saved["splits"]}
    if (local / "state.json").is_file():
        return {"train": [local]}
    splits: dict[str, list[Path]] = {}
    for folder in (local, local / "data"):
        for file in sorted(folder.glob("*")):
            suffix = next((s for s in FILE_SUFFIXES if file.name.endswith(s)), None)
            if suffix is not None and file.is_file():
                splits.setdefault(_SHARD.sub("", file.name.removesuffix(suffix)), []).append(file)
    if not splits:
        raise ValueError(
            f"The folder {local} holds neither a data set saved by `datasets` nor split files "
            "such as train.jsonl or test.parquet."
        )
    return splits


def _described(local: Path, splits: Mapping[str, Any]) -> str:
    if local.is_file():
        return (
            'A single file is one split, "train"; for several, give a folder with one file a split.'
        )
    return f"It has: {', '.join(splits)}."


def _load_local(
    local: Path, files: list[Path], source: DataSource, cache_dir: str | Path | None
) -> "Dataset":
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetGenerationError

    where = str(local if files[1:] else files[0])
    if files[0].is_dir():
        raw = load_from_disk(str(files[0]))
        raw._fingerprint = _fingerprint(files)  # the saved one does not follow the files
        return normalize_pairs(raw, columns=source.columns, where=where, cache_dir=cache_dir)
    names = [str(file) for file in files]
    kinds = {name.endswith(".parquet") for name in names}
    if len(kinds) > 1:
        raise ValueError(
            f"{local}: the split {source.split!r} is spread over parquet and other files. "
            "Use one kind."
        )
    if kinds == {False}:
        return _load_records(tuple(names), source.columns, cache_dir)
    try:
        options = {"data_files": names, "split": "train", "cache_dir": _text(cache_dir)}
        with _no_bars():
            raw = load_dataset("parquet", _fingerprint(files), **options)
    except (DatasetGenerationError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise ValueError(f"{where} cannot be read: {error.__cause__ or error}") from error
    return normalize_pairs(raw, columns=source.columns, where=where, cache_dir=cache_dir)


def _load_records(
    files: tuple[str, ...], columns: Mapping[str, str] | None, cache_dir: str | Path | None
) -> "Dataset":
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    mapping = tuple((columns or {}).items())
    try:
        with _no_bars():
            return Dataset.from_generator(
                _normalized_records,
                features=pair_features(),
                gen_kwargs={"files": files, "columns": mapping},
                cache_dir=_text(cache_dir),
                fingerprint=_fingerprint(files, sorted(mapping)),
            )
    except DatasetGenerationError as error:
        # `datasets` puts its own general sentence around our error, which names the line.
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def _fingerprint(files: Sequence[str | Path], *more: Any) -> str:
    """Return a key of the content of files, under which what is made of them is found again."""
    named = [(str(Path(file).resolve()), identity_of(file)) for file in files]
    content = json.dumps(["records", PAIR_FORM_VERSION, named, *more])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


@contextmanager
def _no_bars() -> Iterator[None]:
    """Load without the bar "Generating train split" of `datasets`, which names no file."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _normalized_records(
    files: tuple[str, ...], columns: tuple[tuple[str, str], ...]
) -> Iterator[dict[str, Any]]:
    mapping: dict[str, str] | None = None
    row = 0
    for file in files:
        for place, record in read_records(Path(file), whole_characters=False):
            if mapping is None:
                mapping = check_columns(list(record), dict(columns), place)
            if "prompt" in record and not {"prompt"} & {*mapping, *mapping.values()}:
                raise ValueError(
                    f"{place} has a prompt, but the first row has none. Give all rows one, or none."
                )
            yield normalize_row(record, mapping, row, place)
            row += 1
    if row == 0:
        raise ValueError(f"{', '.join(files)} has no rows.")


def _load_from_hub(source: DataSource, cache_dir: str | Path | None) -> "Dataset":
    from datasets import load_dataset

    where = f"{source.path} ({source.split})"
    options = {"split": source.split, "cache_dir": _text(cache_dir)}
    try:
        raw = _from_hub(
            where, source.path, lambda: load_dataset(source.path, source.name, **options)
        )
    except ValueError as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        wanted, splits = source.split.partition("[")[0], hub_splits(source.path, source.name)
        if wanted in splits:
            raise
        raise ValueError(
            f"{source.path} has no split {wanted!r}. It has: {', '.join(splits)}."
        ) from error
    return normalize_pairs(raw, columns=source.columns, where=where, cache_dir=cache_dir)


@cache
def hub_splits(name: str, configuration: str | None = None) -> tuple[str, ...]:
    """Return the splits of a data set of the Hub.

    Raises:
        ValueError: there is no such data set or configuration, or the Hub cannot be reached.
    """
    from datasets import get_dataset_split_names

    return tuple(_from_hub(name, name, lambda: get_dataset_split_names(name, configuration)))


def _from_hub(where: str, name: str, get: Callable[[], Any]) -> Any:
    """Return what `get` gets of a data set of the Hub, which must have the name."""
    from datasets.exceptions import DatasetNotFoundError

    found, here = (
        ask_hub(name, "dataset"),
        f"{name!r} is not a file or folder in the working directory{near_name(name)}",
    )
    if found.there is False:
        raise ValueError(f"{here}, and {found.reason}; correct the name.")
    if found.there is None:
        ask_no_more()
    try:
        return get()
    except ValueError as error:  # a split or a configuration that it does not have
        raise ValueError(f"{where}: {error}") from error
    except (DatasetNotFoundError, ConnectionError) as error:
        why = f"the Hub cannot be reached ({found.reason})" if found.reason else f"{error}"
        raise ValueError(
            f"{here}, and {why}; correct the path, or fetch the data set where there is a network."
        ) from error


def _slice(pairs: "Dataset", split: str, spec: str) -> "Dataset":
    from datasets import ReadInstruction

    [part] = ReadInstruction.from_spec(spec).to_absolute({split: len(pairs)})
    start, stop = part.from_ or 0, len(pairs) if part.to is None else part.to
    if start >= stop:
        raise ValueError(f"The slice {spec} of {len(pairs)} rows is empty.")
    return pairs.select(range(start, stop))


def _count_rows_from(first_row: int, pairs: "Dataset") -> "Dataset":
    if first_row == 0:
        return pairs
    rows = np.asarray(pairs["row"][:]) + first_row
    columns = pairs.column_names
    return pairs.remove_columns("row").add_column("row", rows).select_columns(columns)


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
