"""Whether `rahf prepare` has been done already: the same recipe, and no file touched since.

Files are known by size and time of change, as `make` knows them, so that a second start reads none
of them and imports neither torch nor datasets. Whatever differs, the preparation itself is run,
which looks into its cache by content. Knows no tokenizer and no rows.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rahf.artifacts import read_json, write_json
from rahf.data.pairs import PAIR_FORM_VERSION
from rahf.data.sources import DataSource, local_path
from rahf.data.tokenization import TOKENIZATION_VERSION
from rahf.plan.lengths import LENGTHS_FILE
from rahf.recipe.reading import Recipe

PREPARED_FILE = "prepared.json"
PACKAGES = ("rahf", "transformers", "tokenizers", "datasets", "jinja2")
CACHE_VARIABLES = ("HF_DATASETS_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME")

Stamps = dict[str, tuple[int, int]]  # path: bytes and time of change, ns


def preparation_key(recipe: Recipe) -> str | None:
    """Hash of all that the result depends on; None where model or data come from the Hub, which may
    have something new.
    """
    data, model = recipe.data, Path(recipe.model.model_name_or_path)
    parts = data.datasets or [{"path": data.dataset_name, "name": data.dataset_config}]
    sources = [local_path(DataSource(part["path"], part.get("name"))) for part in parts]
    if None in sources or not model.is_dir():
        return None
    given = [model, *sources]
    template = data.chat_template
    if template is not None and "{" not in template:  # the path of one
        given.append(Path(template).expanduser())
    content = {
        "recipe": recipe.as_dict(),
        "files": stamps(file for path in given for file in files_of(path)),
        "forms": [PAIR_FORM_VERSION, TOKENIZATION_VERSION],
        "versions": [importlib.metadata.version(name) for name in PACKAGES],
        "cache": {name: os.environ.get(name) for name in CACHE_VARIABLES},
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def note_prepared(
    recipe: Recipe, key: str | None, splits: Mapping[str, tuple[int, list[str]]]
) -> None:
    """Write down what was prepared: number of rows and files of each split.

    Args:
        key: of the recipe before the work began, so that a file changed meanwhile counts as new.
    """
    if key is None:
        return
    files = [Path(name) for _, names in splits.values() for name in names]
    results = stamps([*files, recipe.output_dir / LENGTHS_FILE])
    found = {"key": key, "results": results, "splits": splits}
    write_json(recipe.output_dir / PREPARED_FILE, found)


def still_prepared(recipe: Recipe) -> str | None:
    """A line for each split where nothing is to be done; None where something may be."""
    path = recipe.output_dir / PREPARED_FILE
    if not path.is_file():
        return None
    found = read_json(path)
    results = [Path(name) for name in found["results"]]
    if found["key"] != preparation_key(recipe) or not all(file.is_file() for file in results):
        return None
    if json.loads(json.dumps(stamps(results))) != found["results"]:
        return None
    return "\n".join(
        f"{split}: {rows:,} rows, {place(files)}; nothing has changed since they were prepared"
        for split, (rows, files) in found["splits"].items()
    )


def place(files: Iterable[str]) -> str:
    """Where rows are, in words."""
    return f"in {', '.join(files)}" if files else "in memory"


def files_of(path: Path) -> list[Path]:
    """`path` itself where it is a file, or all files in it and below."""
    return [file for file in (path, *sorted(path.rglob("*"))) if file.is_file()]


def stamps(files: Iterable[Path]) -> Stamps:
    """Size and time of change of each file."""
    found = {str(file.resolve()): file.stat() for file in files}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}
