"""Options of the model and of the LoRA that is trained on it, and their checks.

Knows no model and no file.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from rahf.recipe.fields import (
    Limits,
    OrAny,
    Rank,
    Share,
    option,
    raise_problems,
    value_problems,
)
from rahf.recipe.training_values import attention_kernels


@dataclass(frozen=True)
class ModelOptions:
    """The model and the LoRA that is trained on it (names as in TRL's ModelConfig)."""

    model_name_or_path: str = field(
        metadata={"help": "Base model: a local folder or a Hub id. Required."}
    )
    model_revision: str | None = option(None, "Branch, tag or commit of the model on the Hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "float32",
        "dtype of the frozen weights; adapters are always trained in float32.",
    )
    attn_implementation: str | None = option(
        None,
        "Attention kernel (`eager`, `sdpa`, `flash_attention_2`); null: chosen by transformers.",
    )
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.")
    load_in_4bit: bool = option(False, "Quantise the frozen weights to 4 bits (bitsandbytes).")
    load_in_8bit: bool = option(False, "Quantise the frozen weights to 8 bits (bitsandbytes).")
    lora_r: Rank = option(8, "Rank of the adapters.")
    lora_alpha: Rank = option(
        16, "LoRA's scale: an adapter's update is multiplied by lora_alpha / lora_r."
    )
    use_rslora: bool = option(
        False, "Multiply an adapter's update by lora_alpha / sqrt(lora_r): for ranks above 32."
    )
    use_dora: bool = option(
        False,
        "Train the norms of the adapted matrices too (DoRA): more memory and time a step; vLLM, "
        "sharded bases and `rahf influence` need plain LoRA.",
    )
    lora_dropout: Share = option(0.0, "Dropout on the input of an adapter while it is trained.")
    lora_first_layer: Annotated[int, Limits(least=0), OrAny(float | Literal["auto"])] = option(
        0,
        "First decoder block that gets an adapter: a block number, a fraction of the depth (0.3), "
        "or auto, a sixth of the depth below the lowest target layer. The blocks below are run "
        "once a batch for all views, without gradient.",
    )
    lora_target_modules: list[str] | str | None = option(
        None,
        "Modules that get an adapter: a list of names, `all-linear`, or a regular expression that "
        "matches full names (model.layers.0.self_attn.q_proj); null: PEFT's default for the "
        "architecture, or all-linear where it has none.",
    )

    def __post_init__(self):
        problems = value_problems(self, ModelOptions)
        if not problems and self.load_in_4bit and self.load_in_8bit:
            problems.append("load_in_4bit and load_in_8bit are both true: set one of them to false")
        first = self.lora_first_layer
        if not problems and isinstance(first, float) and not 0 <= first < 1:
            problems.append(
                f"lora_first_layer: {first} is neither a block number, which has no point, nor a "
                "fraction from 0 to below 1"
            )
        if not problems and self.attn_implementation is not None:
            problems += kernel_problems(self.attn_implementation)
        if not problems and isinstance(self.lora_target_modules, str):
            problems = pattern_problems(self.lora_target_modules)
        raise_problems(problems)


def kernel_problems(name: str) -> list[str]:
    """Return problems of the name of an attention kernel; one on the Hub is `owner/name`."""
    if "/" in name or name.removeprefix("paged|") in attention_kernels():
        return []
    return [
        f"attn_implementation: {name!r} is not one of {', '.join(attention_kernels())}, nor a "
        "kernel on the Hub (owner/name)"
    ]


def pattern_problems(modules: str) -> list[str]:
    """Return problems of modules that are given as a regular expression."""
    try:
        re.compile(modules)
    except re.error as error:
        return [
            f"lora_target_modules: {modules!r} is not a regular expression ({error}); give one "
            "that matches full names, a list of names, or all-linear"
        ]
    return []
