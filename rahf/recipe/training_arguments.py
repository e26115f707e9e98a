"""The fields of `transformers.TrainingArguments`: names, types and limits.

Checks no value: building the object does.
"""

import ast
import functools
from collections.abc import Mapping
from typing import Annotated, Any

from rahf.recipe.fields import Count, CountFromZero, Limits, Positive, Share, Weight
from rahf.recipe.transformers_source import SIMPLE, annotation, enums, parse_source

# Where the annotation is not enough: limits, and `fsdp: true`, the form of transformers 5.
_SEED = Annotated[int, Limits(least=0, below=2**32)]  # what numpy takes
_CORRECTED = {
    "activation_checkpointing_kwargs": dict | None,
    "adam_beta1": Share,
    "adam_beta2": Share,
    "adam_epsilon": Weight,
    "data_seed": _SEED | None,
    "dataloader_num_workers": CountFromZero,
    "dataloader_prefetch_factor": Count | None,
    "ddp_bucket_cap_mb": Count | None,
    "ddp_timeout": Count,
    "eval_accumulation_steps": Count | None,
    "eval_delay": Weight,
    "eval_steps": Positive | None,
    "fsdp": bool | str | list | None,
    "gradient_accumulation_steps": Count,
    "gradient_checkpointing_kwargs": dict | None,
    "label_smoothing_factor": Share,
    "learning_rate": Annotated[float, Limits(least=0, below=1000)],
    "logging_steps": Positive,
    "lr_scheduler_kwargs": dict | None,
    "max_grad_norm": Weight,
    "max_steps": Annotated[int, Limits(least=-1)],
    "neftune_noise_alpha": Weight | None,
    "num_train_epochs": Weight,
    "per_device_eval_batch_size": Count,
    "per_device_train_batch_size": Count,
    "save_steps": Positive,
    "save_total_limit": Count | None,
    "seed": _SEED,
    "torch_empty_cache_steps": Count | None,
    "warmup_steps": Weight,
    "weight_decay": Weight,
}

TRAINING_DEFAULTS = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "remove_unused_columns": False,
}
"""Defaults of the alignment that differ from those of transformers."""

TRANSFORMERS_DEFAULTS = {
    "eval_steps": None,
    "eval_strategy": "no",
    "learning_rate": 5e-5,
    "load_best_model_at_end": False,
    "logging_steps": 500,
    "lr_scheduler_type": "linear",
    "num_train_epochs": 3,
    "per_device_eval_batch_size": 8,
    "per_device_train_batch_size": 8,
    "remove_unused_columns": True,
    "save_steps": 500,
    "save_strategy": "steps",
    "seed": 42,
}
"""Defaults of transformers that rahf reads without importing it."""


@functools.cache
def training_annotations() -> dict[str, Any]:
    """Return {field: type} of the installed TrainingArguments; Any where the type is not a simple
    one.

    An enum becomes the Literal of its values. Raises RuntimeError when the source is not found.
    """
    tree = parse_source("training_args.py")
    types = {**SIMPLE, **enums(parse_source("trainer_utils.py")), **enums(tree)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments":
            fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
            found = {line.target.id: annotation(line.annotation, types) for line in fields}
            found |= {name: kind for name, kind in _CORRECTED.items() if name in found}
            return {name: kind for name, kind in found.items() if not name.startswith("_")}
    raise RuntimeError("training_args.py of the installed transformers holds no TrainingArguments")


def without_checkpointing(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return `arguments` with activation checkpointing off, unless they set it.

    TRL turns it on, by the name that transformers 6 removes.
    """
    if {"activation_checkpointing", "gradient_checkpointing"} & arguments.keys():
        return dict(arguments)
    return {"activation_checkpointing": False, **arguments}
