"""What has to hold before an adapter or directions leave this machine: intact, finite, of the base.

Knows files and numbers; loads no model.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor

from rahf.artifacts import load_yaml
from rahf.data.hub import may_be_on_hub

WEIGHTS_FILE = "adapter_model.safetensors"

ADAPTER_FILES = (
    *(WEIGHTS_FILE, "recipe.yaml", "metrics.json", "log.jsonl", "training.png"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    "chat_template.jinja",
)
"""Files of an adapter's folder that others need, besides its configuration and card."""


EXPORTED = ("adapter_config.json", "directions.safetensors")
"""A folder with one of these files can be exported and pushed."""


def nothing_there(folder: Path) -> str:
    """Return why a folder holds nothing to export or push, and what to do."""
    if not folder.exists():
        return (
            f"there is no folder {folder} (working directory: {Path.cwd()}); give that of an "
            "adapter or of directions."
        )
    problem = f"{folder} holds neither an adapter nor directions"
    inside = sorted(
        path.parent
        for path in folder.rglob("*")
        if path.name in EXPORTED and not _in_checkpoint(path)
    )
    begun = any(folder.glob("*checkpoint-*")) or any(folder.rglob("stage.json"))
    cure = "give the folder of one"
    if begun:
        problem += ": its training has not ended"
        cure = "the same rahf align command resumes it"
    if inside:
        cure += f", or give one that is inside: {', '.join(map(str, inside[:4]))}"
    return f"{problem}; {cure}."


def _in_checkpoint(path: Path) -> bool:
    return any(part.startswith("checkpoint-") for part in path.parts)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file of names and values.

    Raises:
        ValueError: it holds something else, or a number that is not finite.
    """
    text = path.read_text(encoding="utf-8")
    value = load_yaml(text) if path.suffix == ".yaml" else json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no names and values but {str(value)[:80]!r}.")
    wrong = sorted(key for key, number in value.items() if not _is_finite(number))
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong)}: not finite (NaN or infinity).")
    return value


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def check_adapter(folder: Path) -> None:
    """Refuse an adapter without weights, or whose weights are not finite or not those it names.

    Raises:
        ValueError: the file is missing, holds no tensors of an adapter, half of a pair, another
            rank than the configuration, or a NaN or infinity.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} holds an adapter_config.json but no {WEIGHTS_FILE}; give the folder of a "
            "finished training (pickled .bin weights are never read)."
        )
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if not any("lora" in name for name in names):
            raise ValueError(f"{path} holds no LoRA tensors; train the adapter again.")
        for name in names:
            if not file.get_tensor(name).isfinite().all():
                raise ValueError(f"{path}: {name} has NaN or infinity; train the adapter again.")
        _check_ranks(folder, {name: tuple(file.get_slice(name).get_shape()) for name in names})


def _check_ranks(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a LoRA of which a half is missing, or whose rank is not that of its configuration."""
    path, config = folder / WEIGHTS_FILE, read_mapping(folder / "adapter_config.json")
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"{folder}/adapter_config.json: r: {rank!r} is not a rank of a LoRA.")
    own_ranks = config.get("rank_pattern") or config.get("target_parameters")
    for name, shape in shapes.items():
        if not name.endswith((".lora_A.weight", ".lora_B.weight")):
            continue
        first = name.replace(".lora_B.", ".lora_A.")
        other = name.replace(".lora_A.", ".lora_B.") if first == name else first
        if other not in shapes:
            raise ValueError(f"{path} holds {name} but no {other}; train the adapter again.")
        found = shape[0] if first == name else shape[1]
        if found != rank and not own_ranks:
            raise ValueError(
                f"{path}: {name} has rank {found}, but adapter_config.json r: {rank}; give the "
                "files of one training."
            )


def check_directions(
    source: Path, layers: Sequence[int], vectors: Tensor, metadata: Mapping[str, str]
) -> str | None:
    """Refuse directions that are not finite, or do not fit the base as far as it is known.

    Returns:
        What could not be checked, since the base is not on this machine; None: nothing.

    Raises:
        ValueError: NaN or infinity; a layer or a width that the base does not have.
    """
    for layer, vector in zip(layers, vectors, strict=True):
        if not torch.isfinite(vector).all():
            raise ValueError(
                f"{source}: layer {layer} has NaN or infinity; fit the directions again."
            )
    depth, width = _sizes(metadata)
    wrong = [layer for layer in layers if layer < 0 or (depth is not None and layer >= depth)]
    if wrong:
        there = "counted from 0" if depth is None else f"the base has 0 to {depth - 1}"
        raise ValueError(f"{source}: layer {wrong[0]} does not exist, {there}; fit on this base.")
    if width is not None and vectors.shape[1] != width:
        raise ValueError(
            f"{source}: vectors of width {vectors.shape[1]}, but the base's hidden states have "
            f"{width}; fit on this base."
        )
    unknown = [name for name, size in (("layers", depth), ("width", width)) if size is None]
    if not unknown:
        return None
    return (
        f"{source}: {' and '.join(unknown)} not checked, since the base "
        f"{metadata.get('model') or '(not named)'} has no config.json here"
    )


def _sizes(metadata: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return depth and width of the base: from the metadata, or its config.json, in a folder
    or in the cache of the Hub."""
    depth, model = metadata.get("depth"), metadata.get("model") or ""
    path = Path(model) / "config.json"
    if not path.is_file() and may_be_on_hub(model):
        path = Path(try_to_load_from_cache(model, "config.json") or path)
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config = config.get("text_config") or config
    found = config.get("num_hidden_layers", config.get("n_layer"))
    return found if depth is None else int(depth), config.get("hidden_size", config.get("n_embd"))
