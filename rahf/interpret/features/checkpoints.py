"""Dictionaries on disk: our own, and those of eai-sparsify.

`load_dictionary` reads these and, through the extra `sae`, those of sae-lens (see `sae_lens`). A
checkpoint that decodes by more than directions and a bias is refused. Knows files; knows no model.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rahf.artifacts import expanded, read_json, staging_of, write_json
from rahf.directions.vectors import order_metadata
from rahf.interpret.features.dictionary import Dictionary, Kind, Origin, Site
from rahf.interpret.features.topk import TopKDictionary, Weights

WEIGHTS_FILE, SETTINGS_FILE = "dictionary.safetensors", "dictionary.json"
FOREIGN_SETTINGS, SPARSIFY_WEIGHTS = "cfg.json", "sae.safetensors"


def save_dictionary(dictionary: TopKDictionary, folder: Path) -> None:
    """Write a dictionary of our own, each file beside and then renamed."""
    staging = staging_of(folder / WEIGHTS_FILE)
    tensors = {name: part.cpu().contiguous() for name, part in dictionary.weights._asdict().items()}
    save_file(tensors, staging, {"format": "pt"})
    order_metadata(staging)
    staging.replace(folder / WEIGHTS_FILE)
    settings = {"k": dictionary.k, "signed": dictionary.signed, "origin": asdict(dictionary.origin)}
    write_json(folder / SETTINGS_FILE, settings)


def load_dictionary(
    name: str | Path, device: torch.device | str = "cpu", origin: Origin | None = None
) -> Dictionary:
    """Return the dictionary in a folder, or the one that `sae-lens:RELEASE:ID` names.

    Args:
        origin: in place of a foreign checkpoint's own layer and model.

    Raises:
        ValueError: nothing that can be read is there; a file is damaged; the checkpoint does not
            name its layer and `origin` is not given; sae-lens is not installed.
    """
    if str(name).startswith("sae-lens:"):
        from rahf.interpret.features.sae_lens import from_registry

        return from_registry(str(name), device, origin)
    folder = expanded(name)
    if (folder / SETTINGS_FILE).is_file():
        dictionary = _own(folder, device)
        return replace(dictionary, origin=origin) if origin else dictionary
    if not (folder / FOREIGN_SETTINGS).is_file():
        raise ValueError(
            f"{name} holds no dictionary: give a folder with {SETTINGS_FILE} (rahf features train) "
            f"or with {FOREIGN_SETTINGS} (sae-lens, eai-sparsify), or sae-lens:RELEASE:ID."
        )
    if (folder / SPARSIFY_WEIGHTS).is_file():
        return _from_sparsify(folder, device, origin)
    from rahf.interpret.features.sae_lens import from_folder

    return from_folder(folder, device, origin)


def _own(folder: Path, device: torch.device | str) -> TopKDictionary:
    path = folder / SETTINGS_FILE
    settings = read_settings(path)
    origin = settings.get("origin")
    if not isinstance(origin, dict) or origin.keys() - {each.name for each in fields(Origin)}:
        raise ValueError(f"{path}: origin is {origin!r}, not an object with the fields of one.")
    for name, value in ({"signed": settings.get("signed")} | ORIGIN_DEFAULTS | origin).items():
        wanted, fits = WANTED[name]
        if not fits(value):
            raise ValueError(f"{path}: {name} is {value!r}, not {wanted}: write it again.")
    tensors = read_tensors(folder / WEIGHTS_FILE, Weights._fields, device)
    weights = checked_weights(Weights(**tensors), settings["k"], folder / WEIGHTS_FILE)
    return TopKDictionary(Origin(**origin), weights, settings["k"], settings["signed"])


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least


ORIGIN_DEFAULTS = {"base": None, "fingerprint": 0, "layer": None, "site": None}
"""Fields that an origin must have, with a value that does not fit where there is one."""

WANTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "signed": ("true or false", lambda value: type(value) is bool),
    "base": ("the name of a model", lambda value: isinstance(value, str)),
    "fingerprint": ("text or null", lambda value: value is None or isinstance(value, str)),
    "layer": ("a whole number from 0", _is_count),
    "site": ("residual or mlp", lambda value: value in get_args(Site)),
    "kind": ("states or differences", lambda value: value in get_args(Kind)),
    "seed": ("a whole number from 0 or null", lambda value: value is None or _is_count(value)),
    "adapter": ("text or null", lambda value: value is None or isinstance(value, str)),
}
"""What the settings of a dictionary of our own may be."""


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings beside the weights of a dictionary.

    Raises:
        ValueError: the file holds no JSON object, or its k is no count.
    """
    try:
        found = read_json(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or not JSON ({error}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not an object of settings.")
    if not _is_count(found.get("k"), 1):
        raise ValueError(f"{path}: k is {found.get('k')!r}, not a whole number from 1.")
    return found


def _from_sparsify(
    folder: Path, device: torch.device | str, origin: Origin | None
) -> TopKDictionary:
    """Return a checkpoint of eai-sparsify, which keeps decoder rows as we do."""
    settings = read_settings(folder / FOREIGN_SETTINGS)
    unknown = {
        name: settings[name]
        for name, usual in SPARSIFY_USUAL.items()
        if settings.get(name, usual) != usual
    }
    if unknown:
        given = ", ".join(f"{name}: {value}" for name, value in unknown.items())
        raise ValueError(
            f"{folder}: {given}. Such a checkpoint does not decode by directions and a bias; give "
            "a plain TopK autoencoder."
        )
    names = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    path = folder / SPARSIFY_WEIGHTS
    tensors = read_tensors(path, names, device)
    weights = checked_weights(
        Weights(*(tensors[name].float() for name in names)), settings["k"], path
    )
    origin, signed = origin or _place_of(folder), settings.get("signed", False)
    if not isinstance(signed, bool):
        raise ValueError(f"{folder / FOREIGN_SETTINGS}: signed is {signed!r}, not true or false.")
    return TopKDictionary(origin, weights, settings["k"], signed)


SPARSIFY_USUAL = {
    "activation": "topk",
    "transcode": False,
    "skip_connection": False,
    "embed_skip": False,
    "gram_lookup": False,
}
"""Settings of eai-sparsify, with the value that a plain autoencoder has."""

HOOKPOINT = re.compile(r"(?:model\.|transformer\.|gpt_neox\.)*(?:layers|h)\.(\d+)(\.mlp)?")
"""Name of a folder of eai-sparsify, which is that of the module whose output was read."""


def _place_of(folder: Path) -> Origin:
    found = HOOKPOINT.fullmatch(folder.resolve().name)
    if found is None:
        raise ValueError(
            f"{folder}: its name does not give the layer that the dictionary reads (layers.5, "
            "layers.5.mlp). Rename the folder as eai-sparsify writes it, or give an origin."
        )
    site = "mlp" if found[2] else "residual"
    return Origin(f"the base of {folder}", None, int(found[1]), site)


def read_tensors(
    path: Path, names: tuple[str, ...], device: torch.device | str
) -> dict[str, Tensor]:
    """Return the named tensors of a file.

    Raises:
        ValueError: the file is missing or damaged, or lacks one of them.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: fetch or write the dictionary again.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            missing = set(names) - set(file.keys())
            if missing:
                raise ValueError(
                    f"{path} has no tensor {', '.join(sorted(missing))}; it has "
                    f"{', '.join(sorted(file.keys()))}."
                )
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from None


def checked_weights(weights: Weights, k: int, path: Path) -> Weights:
    """Refuse weights of shapes that do not go together, no floats, not finite, or all zero."""
    if weights.directions.dim() != 2:
        raise ValueError(f"{path}: directions have {weights.directions.dim()} dimensions, not 2.")
    latents, width = weights.directions.shape
    wanted = Weights((latents, width), (latents,), (latents, width), (width,))
    shapes = Weights(*(tuple(part.shape) for part in weights))
    if shapes != wanted or not 0 < k <= latents:
        raise ValueError(
            f"{path}: with k {k}, encoder {shapes.encoder}, encoder bias {shapes.encoder_bias}, "
            f"directions {shapes.directions} and bias {shapes.bias} do not form a dictionary."
        )
    for name, part in weights._asdict().items():
        if not part.is_floating_point():
            raise ValueError(f"{path}: {name} holds {part.dtype}, not floating-point numbers.")
        if not part.isfinite().all():
            raise ValueError(f"{path}: {name} holds values that are not finite.")
        if name in ("encoder", "directions") and not part.any():
            raise ValueError(f"{path}: {name} holds zeros only: write the dictionary again.")
    return weights
