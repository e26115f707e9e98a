"""Turn off what a checkpoint configures for its own training: dropout and router losses.

A policy is trained in training mode and its targets are read in evaluation mode. Dropout of the
base would be on in the first and off in the second, so that the loss would not start at its value.
TRL's DPO turns it off for the same reason. Dropout of the adapters (`lora_dropout`) stays.
"""

import logging

from peft.tuners.lora import LoraLayer
from torch import nn

logger = logging.getLogger(__name__)


def turn_off_dropout(model: nn.Module) -> float:
    """Set every dropout probability of the model itself to 0; return the largest there was.

    Both forms are found: modules of dropout, and probabilities that a module keeps as a number
    and hands to a function.
    """
    adapters = {
        module
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for module in layer.lora_dropout.modules()
    }
    found = [0.0]
    for module in model.modules():
        if module in adapters:
            continue
        for name in _probabilities(module):
            found.append(getattr(module, name))
            setattr(module, name, 0.0)
    largest = max(found)
    if largest > 0:
        logger.warning(
            "the base's own dropout (%g) is off: it would be on in the policy and off in its "
            "targets. Use lora_dropout for the adapters.",
            largest,
        )
    return largest


def turn_off_router_logits(model: nn.Module) -> None:
    """Let a mixture of experts return no router logits, if its configuration requests them.

    They add a loss that no term reads and that fails on packed rows.
    """
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False


def _probabilities(module: nn.Module) -> list[str]:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return ["p"]
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, float) and value > 0 and ("drop" in name or "pdrop" in name)
    ]
