"""The stored directions that a recipe names, against its model: widths, layers, numbers.

Knows neither torch nor a GPU; reads the header of a file, and the numbers of small ones.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rahf.artifacts import expanded
from rahf.recipe.layers import AUTO, resolve_layers
from rahf.recipe.recipe import Recipe
from rahf.recipe.shift_options import named_rightly

BANK = Path("reading", "bank")
"""Where `rahf directions --bank` writes one folder a name, inside of output_dir."""

NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
"""numpy's names for formats whose numbers are checked."""


def protected_folders(recipe: Recipe) -> list[Path]:
    """Return the folder or file of each protected direction: a path, or a name of the bank."""
    folders = []
    for name in recipe.method.protect:
        path = expanded(name)
        folders.append(path if path.exists() else recipe.output_dir / BANK / name)
    return folders


def direction_problems(recipe: Recipe, config: Mapping[str, Any], depth: int | None) -> list[str]:
    """Return what is wrong with the directions that are aligned to and those that are protected."""
    method, problems = recipe.method, []
    if isinstance(method.directions, str):
        problems += file_problems("directions", Path(method.directions), config, depth)
    if not named_rightly(method.protect):
        return problems  # reported with the options of the method
    layers = _target_layers(method.target_layers, depth)
    for name, path in zip(method.protect, protected_folders(recipe), strict=True):
        if not path.exists():
            problems.append(
                f"protect: {name!r} is neither a folder of directions nor in {path.parent}: fit "
                "the bank by rahf directions RECIPE.yaml --bank, or give a folder"
            )
            continue
        problems += file_problems("protect", path, config, depth, layers)
    return problems


def _target_layers(given: Any, depth: int | None) -> tuple[int, ...]:
    if depth is None:
        return ()
    try:
        return tuple(range(depth)) if given == AUTO else resolve_layers(given, depth)
    except ValueError:
        return ()  # reported with the options of the method


def file_problems(
    key: str,
    path: Path,
    config: Mapping[str, Any],
    depth: int | None,
    needed: tuple[int, ...] = (),
) -> list[str]:
    """Return what is wrong with a file of directions, or the one in a folder.

    Args:
        needed: layers that it must hold.
    """
    path = path / "directions.safetensors" if path.is_dir() else path
    if not path.is_file():
        return [] if key == "directions" else [f"{key}: {path} does not exist"]
    try:
        tensors = _tensors(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{key}: {path} is damaged or not a safetensors file ({error})"]
    layers = {int(name[6:]): entry for name, entry in tensors.items() if name[6:].isdecimal()}
    if not layers:
        return [f"{key}: {path} holds no tensors named 'layer.N'"]
    width = config.get("hidden_size") or config.get("n_embd")
    problems = []
    if width and any(entry["shape"] != [width] for entry in layers.values()):
        problems.append(f"{key}: {path} is of another model than one of width {width}")
    if depth and max(layers) >= depth:
        problems.append(f"{key}: {path} holds layer {max(layers)}, the model {depth} blocks")
    missing = [layer for layer in needed if layer not in layers]
    if missing and not problems:
        problems.append(
            f"{key}: {path} holds no vector of layers {missing}, which target_layers names: fit "
            "directions for them, or take them out of target_layers"
        )
    return problems + _number_problems(f"{key}: {path}", layers)


def _number_problems(place: str, layers: Mapping[int, Mapping[str, Any]]) -> list[str]:
    wrong = [layer for layer, entry in sorted(layers.items()) if not entry["finite"]]
    if not wrong:
        return []
    return [
        f"{place}: the vectors of layers {wrong} are not finite (NaN or infinity): fit them again"
    ]


def _tensors(path: Path) -> dict[str, Any]:
    """Return {name: its header entry, with whether its numbers are finite}.

    Raises:
        ValueError: the file has no such header.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size:
            raise ValueError("it has no header")
        header = json.loads(file.read(length))
        found = {name: entry for name, entry in header.items() if name.startswith("layer.")}
        for entry in found.values():
            start, end = entry["data_offsets"]
            file.seek(8 + length + start)
            kind = NUMBERS.get(entry["dtype"])
            numbers = np.frombuffer(file.read(end - start), kind) if kind else np.zeros(1)
            entry["finite"] = bool(np.isfinite(numbers).all())
    return found
