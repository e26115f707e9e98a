"""A bank of directions as recipes: for each name, two instructions or two files of answers.

Knows texts; knows no model. `pipeline/bank.py` lets a model answer, and fits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rahf.data.prompts import prompt_text, read_responses
from rahf.recipe.yaml_file import read_yaml

KEYS = {"about", "instructions", "files", "prompts", "words"}
SIDES = ("positive", "negative")
LEAST_PROMPTS = 5


@dataclass(frozen=True)
class Entry:
    """How one direction is fitted."""

    name: str
    about: str
    prompts: tuple[str, ...]
    instructions: Mapping[str, str]  # by side; empty where there are files
    files: Mapping[str, Path]  # by side; empty where there are instructions
    words: Mapping[str, tuple[str, ...]]  # by side


def own_bank() -> Path:
    """Return the file of the bank that comes with the package."""
    return Path(str(files("rahf.directions") / "bank.yaml"))


def read_bank(path: Path) -> list[Entry]:
    """Return the entries of a YAML file.

    Raises:
        ValueError: with the first problem of the file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file of a bank of directions.")
    given, problems = read_yaml(path)
    if problems:
        raise ValueError(f"{path}: {problems[0]}")
    unknown = given.keys() - {"prompts", "directions"}
    if unknown:
        raise ValueError(f"{path}: unknown key {sorted(map(str, unknown))[0]}.")
    entries = given.get("directions")
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path}: `directions` should name at least one direction.")
    return [
        _entry(f"{path}: directions.{name}", str(name), entry, given.get("prompts") or [])
        for name, entry in entries.items()
    ]


def _entry(place: str, name: str, given: Any, shared: Any) -> Entry:
    if not isinstance(given, dict) or given.keys() - KEYS:
        raise ValueError(f"{place}: should be a mapping with keys of {', '.join(sorted(KEYS))}.")
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"{place}: the name should be that of a folder, without '/'.")
    both = [given.get(key) for key in ("instructions", "files")]
    if (both[0] is None) == (both[1] is None):
        raise ValueError(f"{place}: needs either `instructions` or `files`.")
    sides = both[0] if both[0] is not None else both[1]
    if not _texts(sides, SIDES) or sides["positive"].strip() == sides["negative"].strip():
        raise ValueError(f"{place}: needs two different texts, `positive` and `negative`.")
    prompts = given.get("prompts") or shared
    if both[0] is not None and not _text_list(prompts, LEAST_PROMPTS):
        raise ValueError(f"{place}: needs at least {LEAST_PROMPTS} prompts, each a text.")
    words = given.get("words") or {}
    if not isinstance(words, dict) or not all(
        side in SIDES and _text_list(listed, 0) for side, listed in words.items()
    ):
        raise ValueError(f"{place}.words: should be lists of words, `positive` and `negative`.")
    for side in SIDES if both[1] is not None else ():
        if not Path(sides[side]).is_file():
            raise ValueError(
                f"{place}.files.{side}: there is no file {sides[side]} (working directory: "
                f"{Path.cwd()})."
            )
    return Entry(
        name,
        str(given.get("about", name)),
        tuple(prompts) if both[0] is not None else (),
        dict(sides) if both[0] is not None else {},
        {} if both[0] is not None else {side: Path(sides[side]) for side in SIDES},
        {side: tuple(map(str, listed)) for side, listed in words.items()},
    )


def _texts(given: Any, keys: Sequence[str]) -> bool:
    if not isinstance(given, dict) or set(given) != set(keys):
        return False
    return all(isinstance(given[key], str) and given[key].strip() for key in keys)


def _text_list(given: Any, least: int) -> bool:
    texts = isinstance(given, list) and all(isinstance(each, str) and each for each in given)
    return texts and len(given) >= least


def pairs_of_files(entry: Entry) -> list[dict[str, str]]:
    """Return pairs of the answers in both files to the same prompts.

    Raises:
        ValueError: no prompt occurs in both files.
    """
    by_side = []
    for side in SIDES:
        found = read_responses(entry.files[side])
        by_side.append({prompt_text(each.messages): each.text for each in found})
    shared = [prompt for prompt in by_side[0] if prompt in by_side[1]]
    if not shared:
        raise ValueError(
            f"{entry.name}: {entry.files['positive']} and {entry.files['negative']} share no "
            "prompt: give answers to the same prompts."
        )
    return [
        {"prompt": prompt, "chosen": by_side[0][prompt], "rejected": by_side[1][prompt]}
        for prompt in shared
    ]
