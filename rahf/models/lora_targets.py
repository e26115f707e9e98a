"""Which matrices of which decoder blocks get a LoRA.

PEFT restricts a LoRA to some blocks only where modules are given by the endings of their names.
Other forms are written out here.
"""

import re
from dataclasses import replace

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rahf.models.capture import find_blocks


def on_blocks(config: LoraConfig, base: PreTrainedModel, layers: range) -> LoraConfig:
    """Return the configuration restricted to the given blocks, unless it names blocks itself."""
    blocks = config.layers_to_transform
    if config.target_modules == "all-linear":  # which PEFT takes only for all blocks
        config = replace(config, target_modules=linear_names(base))
    elif isinstance(config.target_modules, str):  # and a pattern as well
        config = replace(config, target_modules=matches(base, config.target_modules, layers))
    return replace(
        oriented(config, base),
        task_type="CAUSAL_LM",
        layers_to_transform=list(layers) if blocks is None else blocks,
    )


def oriented(config: LoraConfig, base: nn.Module) -> LoraConfig:
    """Return the LoRA for matrices as `base` stores them: those of GPT-2 are transposed."""
    transposed = any(isinstance(module, Conv1D) for module in base.modules())
    return replace(config, fan_in_fan_out=config.fan_in_fan_out or transposed)


def linear_names(base: PreTrainedModel) -> list[str]:
    """Names of the matrices inside the decoder blocks: `q_proj`, `down_proj`, ..."""
    matrices = (nn.Linear, Conv1D)  # GPT-2's matrices are the latter
    return sorted(
        {
            name.rpartition(".")[2]
            for block in find_blocks(base).modules
            for name, module in block.named_modules()
            if isinstance(module, matrices)
        }
    )


def matches(base: PreTrainedModel, pattern: str, layers: range) -> list[str]:
    """Full names of the modules in some decoder blocks that a pattern matches whole, as PEFT reads
    it: `model.layers.0.self_attn.q_proj`, ...

    Raises:
        ValueError: it matches none.
    """
    blocks = find_blocks(base).modules
    inside = {module: layer for layer in layers for module in blocks[layer].modules()}
    names = [name for name, module in base.named_modules() if module in inside]
    matched = [name for name in names if re.fullmatch(pattern, name)]
    if not matched:
        raise ValueError(
            f"target_modules (lora_target_modules): the pattern {pattern!r} matches the whole name "
            f"of no module in the blocks {layers.start} to {layers.stop - 1}, which get the "
            f"adapter. Names are as {names[-1]}: give a pattern that matches some, a list of "
            "endings of names, or all-linear."
        )
    return matched
