"""Which matrices of which decoder blocks get a LoRA.

PEFT restricts a LoRA to some blocks only where modules are given by the endings of their names.
Other forms are written out here. Knows peft; knows no training.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from peft import LoraConfig
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rahf.models.capture import find_blocks

logger = logging.getLogger(__name__)

MATRICES = (nn.Linear, Conv1D)  # GPT-2's matrices are the latter

WITHOUT_LORA = {
    "falcon_h1": ("out_proj",),
    "falcon_mamba": ("out_proj", "dt_proj"),
    "jamba": ("dt_proj",),
    "mamba": ("out_proj", "dt_proj"),
    "mamba2": ("out_proj",),
    "nemotron_h": ("out_proj",),
}
"""Matrices by model_type: PEFT refuses `out_proj`, and the weight of `dt_proj` is read past its
forward, so that a LoRA on it would have no effect.
"""


def on_blocks(
    config: LoraConfig, base: PreTrainedModel, blocks: nn.ModuleList, layers: range
) -> LoraConfig:
    """Return the configuration restricted to the given blocks, or to those of them that it names.

    Without modules it gets PEFT's for the architecture, or every matrix where PEFT has none.

    Args:
        blocks: all decoder blocks of `base`.

    Raises:
        ValueError: a pattern of modules that matches nothing in the blocks; it names none of them.
    """
    chosen = named_blocks(config, layers)
    inside = [blocks[layer] for layer in layers]
    modules = default_modules(base, inside) if config.target_modules is None else None
    modules = modules or config.target_modules
    if modules == "all-linear":  # which PEFT takes only for all blocks
        modules = linear_names(base, blocks)
    elif isinstance(modules, str):  # and a pattern as well
        modules = matches(base, modules, blocks, layers)
    config = replace(
        oriented(config, base),
        target_modules=modules,
        task_type="CAUSAL_LM",
        layers_to_transform=chosen,
    )
    if config.layers_pattern is None:
        path = next(name for name, module in base.named_modules() if module is blocks)
        if _lists_outside(base, blocks):
            # The blocks of a tower have the same numbers, and often the same matrices.
            config.layers_pattern = [path]
        elif _numbered(inside):
            # PEFT takes the last number of a name for the block's: that of an expert, otherwise.
            config.layers_pattern = [path.rpartition(".")[2]]
    return config


def named_blocks(config: LoraConfig, layers: range) -> list[int]:
    """Return those of `layers` that the configuration names; all of them where it names none.

    Raises:
        ValueError: it names only others.
    """
    own = config.layers_to_transform
    own = [own] if isinstance(own, int) else own
    chosen = [layer for layer in layers if not own or layer in own]
    if not chosen:
        raise ValueError(
            f"layers_to_transform (lora_first_layer) names blocks {min(own)} to {max(own)}, the "
            f"loss reads {layers.start} to {layers.stop - 1}: the adapter would have no "
            "effect. Let it begin lower, or align higher layers (target_layers)."
        )
    return chosen


def default_modules(base: PreTrainedModel, blocks: Sequence[nn.Module]) -> str | list[str]:
    """Return PEFT's modules for the architecture, or all matrices where it has none in `blocks`."""
    mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    known = mapping.get(base.config.model_type, ())
    if isinstance(known, str):
        return known
    found = {name.rpartition(".")[2] for block in blocks for name, _ in block.named_modules()}
    return list(known) if found.intersection(known) else "all-linear"


def oriented(config: LoraConfig, base: nn.Module) -> LoraConfig:
    """Return the LoRA for matrices as `base` stores them: those of GPT-2 are transposed.

    Where PEFT has no default for the architecture, the default is every matrix.
    """
    transposed = any(isinstance(module, Conv1D) for module in base.modules())
    known = base.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    return replace(
        config,
        fan_in_fan_out=config.fan_in_fan_out or transposed,
        target_modules=config.target_modules or (None if known else "all-linear"),
    )


def on_all_blocks(config: LoraConfig, base: PreTrainedModel) -> LoraConfig:
    """Return the configuration for a trainer that restricts no blocks: as `oriented`, and inside
    the decoder's blocks where the model has parts beside its decoder, such as a vision tower.
    """
    if base.config.get_text_config() is base.config:
        return oriented(config, base)
    blocks = find_blocks(base).modules
    inside = on_blocks(config, base, blocks, range(len(blocks)))
    return replace(inside, task_type=config.task_type, layers_pattern=inside.layers_pattern)


def linear_names(base: PreTrainedModel, blocks: Sequence[nn.Module]) -> list[str]:
    """Return the names of the matrices inside the blocks: `q_proj`, `down_proj`, ...

    Less those that get no LoRA, and, in a model with fused experts, those whose name PEFT takes for
    a part of the experts.
    """
    names = {
        name.rpartition(".")[2]
        for block in blocks
        for name, module in block.named_modules()
        if isinstance(module, MATRICES)
        # A router may be a matrix that returns more than a product (Llama 4, Phi-3.5-MoE).
        and not type(module).__name__.endswith("Router")
    }
    names -= set(WITHOUT_LORA.get(base.config.model_type, ()))
    as_peft_reads_it = LoraConfig(target_modules=names)
    convert_peft_config_for_transformers(as_peft_reads_it, base, None)
    return sorted(as_peft_reads_it.target_modules)


def matches(base: PreTrainedModel, pattern: str, blocks: nn.ModuleList, layers: range) -> list[str]:
    """Return names of modules in some blocks that a pattern matches in full, as PEFT reads it:
    `model.layers.0.self_attn.q_proj`, ...

    Raises:
        ValueError: it matches no module.
    """
    inside = {module: layer for layer in layers for module in blocks[layer].modules()}
    names = [name for name, module in base.named_modules() if module in inside]
    matched = [name for name in names if re.fullmatch(pattern, name)]
    if not matched:
        raise ValueError(
            f"target_modules (lora_target_modules): the pattern {pattern!r} matches the full name "
            f"of no module in the blocks {layers.start} to {layers.stop - 1}, which get the "
            f"adapter. Names are as {names[-1]}: give a pattern that matches some, a list of "
            "endings of names, or all-linear."
        )
    return matched


def _numbered(blocks: Sequence[nn.Module]) -> bool:
    """Return whether a block holds a list of modules, so that its names have two numbers."""
    return any(isinstance(module, nn.ModuleList) for block in blocks for module in block.modules())


def _lists_outside(base: nn.Module, blocks: nn.ModuleList) -> bool:
    """Return whether `base` has lists of modules beside its decoder blocks, as a tower has."""
    inside = set(blocks.modules())
    lists = (module for module in base.modules() if isinstance(module, nn.ModuleList))
    return any(module not in inside for module in lists)


def report_untouched_experts(blocks: Sequence[nn.Module]) -> None:
    """Report experts that are one fused parameter, unless the LoRA on `blocks` reaches them."""
    reached = {
        (module.get_base_layer(), module.parameter_name)
        for block in blocks
        for module in block.modules()
        if isinstance(module, ParamWrapper)
    }
    left = {
        weight
        for block in blocks
        for module, weight in _fused(block)
        if (module, weight) not in reached
    }
    if left:
        logger.warning(
            "the experts (%s) get no adapter: each is one fused parameter, which no "
            "lora_target_modules reaches. From Python, LoraConfig(target_parameters=...) does.",
            ", ".join(sorted(left)),
        )


def _fused(block: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the parameters that hold a matrix for each expert, as module and name."""
    for module in block.modules():
        for name, value in module.named_parameters(recurse=False):
            if value.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd):
                yield module, name
