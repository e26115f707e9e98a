"""Recipes that ship with the package: their names, what they are, copies of them with their data.

A copy keeps its place below the current folder, since a recipe names its data from there.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rahf.artifacts import alone, load_yaml, write_text
from rahf.shipped.folders import RECIPES, shipped_folder


class Copied(NamedTuple):
    """What `copy_recipe` did."""

    recipe: Path
    new: list[Path]  # files that were not there
    kept: list[Path]  # files that are there with other content


def shipped_recipes() -> dict[str, Path]:
    """Return {name: file}, the name as FOLDER/RECIPE."""
    folder = shipped_folder(RECIPES)
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.glob("*/*.yaml"))
    }


def title_of(path: Path) -> str:
    """Return the first sentence of the comment that a recipe opens with."""
    comment = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
    text = " ".join(line.lstrip("# ") for line in comment[0].splitlines()) if comment else ""
    return re.split(r"\.(?:\s|$)", text, maxsplit=1)[0]


SCHEMA = "recipe.schema.json"
"""File that the first lines of a recipe name for editors."""


def place_of(name: str, folder: Path) -> Path:
    """Return where `copy_recipe` puts a recipe."""
    return folder / RECIPES / f"{name}.yaml"


def copy_recipe(name: str, folder: Path, *, keep: bool = False) -> Copied:
    """Copy a recipe and the data that it names.

    Args:
        folder: gets recipes/..., as a clone has it.
        keep: leave a file that is there with other content; otherwise it is an error.

    Raises:
        ValueError: no such recipe; a file is there with other content.
    """
    recipes = shipped_recipes()
    if name not in recipes:
        raise ValueError(f"no recipe {name!r}; there are {', '.join(recipes)}")
    top, source = shipped_folder(RECIPES).parent, recipes[name]
    read = [source, top / RECIPES / SCHEMA, *_data_of(source, top)]
    copies = {folder / path.relative_to(top): path for path in read}
    with alone(folder / RECIPES, wait=False):
        missing = [copy for copy in copies if not (copy.exists() or copy.is_symlink())]
        differing = [
            copy
            for copy, path in copies.items()
            if copy not in missing and not (copy.is_file() and _same(copy, path))
        ]
        if differing and not keep:
            raise ValueError(
                f"{differing[0]} is there and differs from the shipped file; it is not replaced: "
                "move it, or copy in another folder."
            )
        for copy in missing:
            write_text(copy, copies[copy].read_text(encoding="utf-8"))
    return Copied(place_of(name, folder), missing, differing)


def _same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _data_of(recipe: Path, top: Path) -> Iterator[Path]:
    """Yield the shipped files that a recipe names: files, and those of folders."""
    for text in _texts(load_yaml(recipe.read_text(encoding="utf-8"))):
        path = top / text
        if text.startswith(f"{RECIPES}/") and path.is_file():
            yield path
        elif text.startswith(f"{RECIPES}/") and path.is_dir():
            yield from (file for file in sorted(path.iterdir()) if file.is_file())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
