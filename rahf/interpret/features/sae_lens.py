"""Dictionaries of sae-lens (the extra `sae`): a folder, or a name of its registry.

Only its classes of autoencoders are used. Whatever the architecture, its decoder has to be a sum of
directions and a bias: this is tried on each checkpoint, and any other is refused.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rahf.artifacts import read_object
from rahf.interpret.features.dictionary import (
    Origin,
    SparseCodes,
    codes_of_active,
    decoded,
    joined,
)

AT_ONCE = 2**25
"""Activations (tokens times latents) that are computed together."""

HOOKS = (
    (re.compile(r"blocks\.(\d+)\.hook_resid_post"), "residual", 0),
    (re.compile(r"blocks\.(\d+)\.hook_resid_pre"), "residual", -1),
    (re.compile(r"blocks\.(\d+)\.hook_mlp_out"), "mlp", 0),
    (re.compile(r"(?:model|transformer|gpt_neox)\.(?:layers|h)\.(\d+)"), "residual", 0),
    (re.compile(r"(?:model|transformer|gpt_neox)\.(?:layers|h)\.(\d+)\.mlp"), "mlp", 0),
)
"""Names of places in a model, the site they are, and what is added to their number."""


@dataclass(frozen=True)
class SaeLensDictionary:
    """An autoencoder of sae-lens."""

    origin: Origin
    sae: Any
    directions: Float[Tensor, "latents d_model"]
    bias: Float[Tensor, " d_model"]

    @property
    def d_model(self) -> int:
        return self.directions.shape[1]

    @property
    def latents(self) -> int:
        return self.directions.shape[0]

    @torch.no_grad()
    def encode(self, hidden: Float[Tensor, "tokens d_model"]) -> SparseCodes:
        parts = hidden.to(self.bias).split(max(1, AT_ONCE // self.latents))
        return joined([codes_of_active(self.sae.encode(part)) for part in parts])

    def decode(self, codes: SparseCodes) -> Float[Tensor, "tokens d_model"]:
        return decoded(codes, self.directions, self.bias)


def from_folder(
    folder: Path, device: torch.device | str, origin: Origin | None
) -> SaeLensDictionary:
    """Return the autoencoder that sae-lens saved in a folder.

    Raises:
        ValueError: a setting is of another type; sae-lens cannot make an autoencoder of it.
    """
    made_by, again = _sae_class(), "fetch or write it again"
    config = read_object(folder / CONFIG_FILE, f"{again.capitalize()}.")
    for name, (wanted, fits) in CONFIG.items():
        if name in config and not fits(config[name]):
            raise ValueError(
                f"{folder / CONFIG_FILE}: {name} is {config[name]!r}, not {wanted}; {again}."
            )
    try:
        sae = made_by.load_from_disk(folder, device=str(device), dtype="float32")
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: sae-lens makes no autoencoder of it ({type(error).__name__}: {error}); "
            f"{again}."
        ) from error
    return _dictionary(sae, str(folder), origin)


CONFIG_FILE = "cfg.json"


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


CONFIG: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("d_in", "d_sae", "k"), ("a whole number from 1", _is_size)),
    **dict.fromkeys(
        ("architecture", "dtype", "hook_name", "model_name", "normalize_activations"),
        ("text", lambda value: isinstance(value, str)),
    ),
    **dict.fromkeys(
        ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"),
        ("true or false", lambda value: isinstance(value, bool)),
    ),
    "metadata": ("an object", lambda value: isinstance(value, dict)),
}
"""What the settings of sae-lens may be, where they are there."""


def from_registry(
    name: str, device: torch.device | str, origin: Origin | None
) -> SaeLensDictionary:
    """Return the autoencoder of the registry that `sae-lens:RELEASE:ID` names."""
    _, release, sae_id = (*name.split(":", 2), "", "")[:3]
    if not release or not sae_id:
        raise ValueError(f"{name!r} names no dictionary: write sae-lens:RELEASE:ID.")
    sae = _sae_class().from_pretrained(release, sae_id, device=str(device))
    return _dictionary(sae, name, origin)


def _sae_class() -> Any:
    try:
        from sae_lens import SAE
    except ImportError as error:
        raise ValueError(
            f"dictionaries of sae-lens need the extra: pip install 'rahf[sae]' ({error})."
        ) from error
    return SAE


@torch.no_grad()
def _dictionary(sae: Any, name: str, origin: Origin | None) -> SaeLensDictionary:
    if (scaling := sae.cfg.normalize_activations) != "none":
        raise ValueError(
            f"{name} reads states that are normalised first ({scaling}); fold the factor into its "
            "weights (fold_activation_norm_scaling_factor) and save it again, or give another."
        )
    rows, bias = sae.W_dec.detach(), sae.decode(sae.W_dec.new_zeros(1, len(sae.W_dec)))[0]
    probe = torch.linspace(0.5, 2, 3 * len(rows), device=rows.device).view(3, -1) / len(rows)
    made = sae.decode(probe)
    # Some count activations in lengths of the rows.
    for directions in (rows, rows / rows.norm(dim=1, keepdim=True)):
        if torch.allclose(probe @ directions + bias, made, atol=1e-4, rtol=1e-3):
            origin = origin or _origin(sae, name)
            return SaeLensDictionary(origin, sae.eval(), directions, bias)
    raise ValueError(
        f"{name}: the architecture {sae.cfg.architecture()} does not decode by directions "
        "and a bias; give another."
    )


def _origin(sae: Any, name: str) -> Origin:
    metadata = sae.cfg.metadata
    hook = str(metadata.hook_name)
    for pattern, site, added in HOOKS:
        if (found := pattern.fullmatch(hook)) and int(found[1]) + added >= 0:
            return Origin(str(metadata.model_name), None, int(found[1]) + added, site)
    raise ValueError(
        f"{name} reads {hook!r}, which is not an output of a decoder block or of its MLP; give a "
        "dictionary of one of these, or an origin."
    )
