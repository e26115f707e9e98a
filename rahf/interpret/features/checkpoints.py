"""Dictionaries on disk: our own, and those of eai-sparsify.

`load_dictionary` reads these and, through the extra `sae`, those of sae-lens (see `sae_lens`). A
checkpoint that decodes by more than directions and a bias is refused. Knows files; knows no model.
"""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rahf.artifacts import read_json, write_json
from rahf.directions.vectors import order_metadata
from rahf.interpret.features.dictionary import Dictionary, Origin
from rahf.interpret.features.topk import TopKDictionary, Weights

WEIGHTS_FILE, SETTINGS_FILE = "dictionary.safetensors", "dictionary.json"
FOREIGN_SETTINGS, SPARSIFY_WEIGHTS = "cfg.json", "sae.safetensors"


def save_dictionary(dictionary: TopKDictionary, folder: Path) -> None:
    """Write a dictionary of our own, each file beside and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f".{WEIGHTS_FILE}.partial"
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
    folder = Path(name).expanduser()
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
    settings = read_json(folder / SETTINGS_FILE)
    tensors = read_tensors(folder / WEIGHTS_FILE, Weights._fields, device)
    weights = checked_weights(Weights(**tensors), settings["k"], folder / WEIGHTS_FILE)
    return TopKDictionary(Origin(**settings["origin"]), weights, settings["k"], settings["signed"])


def _from_sparsify(
    folder: Path, device: torch.device | str, origin: Origin | None
) -> TopKDictionary:
    """Return a checkpoint of eai-sparsify, which keeps decoder rows as we do."""
    settings = read_json(folder / FOREIGN_SETTINGS)
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
    origin = origin or _place_of(folder)
    return TopKDictionary(origin, weights, settings["k"], settings.get("signed", False))


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
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from None


def checked_weights(weights: Weights, k: int, path: Path) -> Weights:
    """Refuse weights of shapes that do not go together, or that are not finite."""
    latents, width = weights.directions.shape
    wanted = Weights((latents, width), (latents,), (latents, width), (width,))
    shapes = Weights(*(tuple(part.shape) for part in weights))
    if shapes != wanted or not 0 < k <= latents:
        raise ValueError(
            f"{path}: with k {k}, encoder {shapes.encoder}, encoder bias {shapes.encoder_bias}, "
            f"directions {shapes.directions} and bias {shapes.bias} do not form a dictionary."
        )
    for name, part in weights._asdict().items():
        if not part.isfinite().all():
            raise ValueError(f"{path}: {name} holds values that are not finite.")
    return weights
