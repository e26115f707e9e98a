"""The base keeps its weights under every adapter: the reference and the other adapters read them.

Some forms of LoRA change the base in place (PiSSA, OLoRA, CorDA, LoftQ, layer replication, saved
biases) or train a part of it (`bias`). They are known by what they do to the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

SAMPLED = 1024
"""Values of each tensor that are compared: a base of any size is checked in little time."""


@contextmanager
def keeping_base(model: nn.Module, adapter: str, what: str) -> Iterator[None]:
    """Refuse a change of `model` while an adapter is put on it.

    Args:
        adapter: name of the adapter, whose own parameters may change.
        what: names the adapter in the error.

    Raises:
        ValueError: a parameter of the base, or of another adapter, has another value, or has left
            the model.
    """
    before = [
        (f"{path}.{name}", module, name, isinstance(parameter, DTensor), _sample(parameter))
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not belongs_to(f"{path}.{name}", adapter)
    ]
    yield
    inside = set(model.modules())
    changed = [
        key
        for key, module, name, in_shards, values in before
        # What FSDP2 gathers or shards again in between is another part of the same tensor.
        if module not in inside
        or (
            isinstance(getattr(module, name), DTensor) == in_shards
            and not torch.equal(values, _sample(getattr(module, name)))
        )
    ]
    if changed:
        raise ValueError(
            f"{what} changes the base's own weights ({changed[0]} and {len(changed) - 1} others), "
            "which the reference and the other adapters are read from. Set init_lora_weights: true "
            "and bias: none, without layer_replication. Convert a finished adapter by PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=...), or merge it into its "
            "base and give the full model."
        )


def refuse_trainable_base(model: nn.Module, adapter: str) -> None:
    """Refuse a parameter outside the adapter that training would change.

    Raises:
        ValueError: there is a trainable parameter that does not belong to the adapter.
    """
    outside = [
        key
        for key, parameter in model.named_parameters()
        if parameter.requires_grad and not belongs_to(key, adapter)
    ]
    if outside:
        raise ValueError(
            f"the policy's LoRA (peft_config) trains the base's own weights ({outside[0]} and "
            f"{len(outside) - 1} others), which the reference is read from. Set bias: none."
        )


def belongs_to(key: str, adapter: str) -> bool:
    """Return whether the parameter of this name is one of the adapter."""
    return adapter in key.split(".")


def _sample(parameter: Tensor) -> Tensor:
    """Return bytes of values spread over a tensor, or over this rank's shard of it."""
    values = parameter.data.to_local() if isinstance(parameter, DTensor) else parameter.data
    if values.is_meta:
        return torch.empty(0, dtype=torch.uint8)
    flat = values.reshape(-1)
    step = max(1, flat.numel() // SAMPLED) | 1  # odd: not one column of a matrix
    return flat[::step].to("cpu", copy=True).contiguous().view(torch.uint8)
