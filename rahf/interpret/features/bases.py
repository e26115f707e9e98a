"""Which model a dictionary belongs to: a fingerprint of weights, and checks against it."""

import hashlib

import torch
from peft import PeftModel
from torch import nn

from rahf.interpret.features.dictionary import Dictionary
from rahf.models.adapters import base_name, depth_of

SAMPLED = 64
"""Values of each weight that the fingerprint holds."""


def fingerprint_of(model: nn.Module) -> str:
    """Return what identifies the weights of models, whatever adapter is on them.

    It holds name, shape and values spread over each weight, rounded to bfloat16: a folder that is
    copied, or loaded in another dtype, has the same fingerprint.
    """
    base, omitted = model, ()
    if isinstance(model, PeftModel):
        base, omitted = model.get_base_model(), (model.base_model.prefix, "modules_to_save.")
    digest = hashlib.sha256()
    for name, weight in base.named_parameters():
        if not any(part in name for part in omitted):
            name = name.replace("base_layer.", "").replace("original_module.", "")
            flat = weight.detach().flatten()
            count = min(SAMPLED, len(flat))
            # In integers: of a large weight, float32 does not hold every place.
            places = torch.arange(count, device=flat.device) * (len(flat) - 1) // max(1, count - 1)
            sample = flat[places].to("cpu", torch.bfloat16)
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_base(dictionary: Dictionary, model: nn.Module) -> None:
    """Refuse a dictionary of another model; one that names no fingerprint is checked by its width.

    Raises:
        ValueError: the width is another, the layer is none of the model's blocks, or the weights
            are not those that the dictionary was trained on.
    """
    origin, width = dictionary.origin, model.config.get_text_config().hidden_size
    if dictionary.d_model != width:
        raise ValueError(
            f"the dictionary reads hidden states of {dictionary.d_model} dimensions, those of "
            f"{base_name(model)} have {width}: it was trained on another model ({origin.base})."
        )
    if not 0 <= origin.layer < depth_of(model):
        raise ValueError(
            f"the dictionary is of layer {origin.layer}, but {base_name(model)} has "
            f"{depth_of(model)} blocks, counted from 0: it was trained on another model "
            f"({origin.base})."
        )
    if origin.fingerprint not in (None, (found := fingerprint_of(model))):
        raise ValueError(
            f"the dictionary was trained on {origin.base} with the fingerprint "
            f"{origin.fingerprint}, but the weights of {base_name(model)} have {found}: give that "
            "model, or train a dictionary on this one."
        )
