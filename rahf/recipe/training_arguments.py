"""The fields of `transformers.TrainingArguments`: names and types, and the names of trackers, read
from the source of the installed transformers without importing it (which takes seconds and needs
torch).

Knows only the defaults that decide a clash, and no values but those of `report_to`: building the
object checks the rest.
"""

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from rahf.recipe.fields import Count, CountFromZero, Limits, Positive, Share, Weight

# Fields of earlier releases, with what takes their place. Looked at only for names that the
# installed release does not have.
REPLACED = {
    "adafactor": "use optim: adafactor",
    "dispatch_batches": "use accelerator_config: {dispatch_batches: ...}",
    "evaluation_strategy": "use eval_strategy",
    "fp16_backend": "remove it",
    "fp16_opt_level": "remove it",
    "fsdp_min_num_params": "use fsdp_config: {min_num_params: ...}",
    "fsdp_transformer_layer_cls_to_wrap": "use fsdp_config: {transformer_layer_cls_to_wrap: ...}",
    "group_by_length": "use train_sampling_strategy: group_by_length",
    "half_precision_backend": "remove it",
    "include_inputs_for_metrics": "use include_for_metrics: [inputs]",
    "include_tokens_per_second": "use include_num_input_tokens_seen",
    "jit_mode_eval": "remove it",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "use use_cpu",
    "overwrite_output_dir": "remove it; a run continues in the folder it finds",
    "per_gpu_eval_batch_size": "use per_device_eval_batch_size",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "push_to_hub_model_id": "use hub_model_id",
    "push_to_hub_organization": "use hub_model_id: organisation/name",
    "push_to_hub_token": "use hub_token",
    "save_safetensors": "remove it; weights are always saved as safetensors",
    "split_batches": "use accelerator_config: {split_batches: ...}",
    "torchdynamo": "use torch_compile_backend",
    "use_ipex": "remove it",
    "use_mps_device": "remove it; an MPS device is found by itself",
    "warmup_ratio": "use warmup_steps: a number below 1 is the share of all steps",
}

# Where the annotation says too little: limits, and `fsdp: true`, the form of transformers 5.
_SEED = Annotated[int, Limits(least=0, below=2**32)]  # what numpy takes
_CORRECTED = {
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
    "label_smoothing_factor": Share,
    "learning_rate": Weight,
    "logging_steps": Positive,
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

_SIMPLE = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "list": list}


@functools.cache
def training_annotations() -> dict[str, Any]:
    """{field: type} of the installed TrainingArguments; Any where the type is not a simple one.

    An enum becomes the Literal of its values. Raises RuntimeError when the source is not found.
    """
    tree = _parse("training_args.py")
    types = {**_SIMPLE, **_enums(_parse("trainer_utils.py")), **_enums(tree)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments":
            fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
            found = {line.target.id: _annotation(line.annotation, types) for line in fields}
            found |= {name: kind for name, kind in _CORRECTED.items() if name in found}
            return {name: kind for name, kind in found.items() if not name.startswith("_")}
    raise RuntimeError("training_args.py of the installed transformers holds no TrainingArguments")


def checkpointing_name() -> str:
    """Return what activation checkpointing is called: transformers before 5.23 know only
    `gradient_checkpointing`, which transformers 6 removes.
    """
    new = "activation_checkpointing"
    return new if new in training_annotations() else "gradient_checkpointing"


def without_checkpointing(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return `arguments` with activation checkpointing off, unless they set it.

    TRL turns it on, by the name that transformers 6 removes.
    """
    if {"activation_checkpointing", "gradient_checkpointing"} & arguments.keys():
        return dict(arguments)
    return {checkpointing_name(): False, **arguments}


@functools.cache
def trackers() -> tuple[str, ...]:
    """Return names that `report_to` takes. Raises RuntimeError when the source is not found."""
    for node in _parse("integrations/integration_utils.py").body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            [target] = node.targets
            if isinstance(target, ast.Name) and target.id == "INTEGRATION_TO_CALLBACK":
                return tuple(key.value for key in node.value.keys)
    raise RuntimeError("integration_utils.py of the installed transformers holds no trackers")


def tracker_problems(report_to: str | list | None) -> list[str]:
    """Return names of `report_to` that the Trainer would refuse when the model has been loaded."""
    if report_to in ("none", "all", ["none"], ["all"]):
        return []
    names = report_to if isinstance(report_to, list) else [report_to]
    return [
        f"report_to: {name!r} is no tracker of transformers: give some of {', '.join(trackers())}, "
        "or all or none alone"
        for name in names
        if name not in trackers()
    ]


# Packages of the trackers whose module has another name; one of the listed is enough.
_TRACKER_MODULES = {
    "azure_ml": ("azureml",),
    "flyte": ("flytekit",),
    "tensorboard": ("tensorboard", "tensorboardX"),
}


def missing_trackers(report_to: str | list | None) -> list[str]:
    """Return a problem for each tracker of `report_to` that is not installed here."""
    names = report_to if isinstance(report_to, list) else [report_to]
    modules = {name: _TRACKER_MODULES.get(name, (name,)) for name in names if name in trackers()}
    return [
        f"report_to: {name} is not installed: pip install {any_of[0]}, or set report_to: none"
        for name, any_of in modules.items()
        if not any(map(importlib.util.find_spec, any_of))
    ]


# What transformers takes where a recipe omits a key, as far as it decides a clash.
_DEFAULTS = {
    "eval_strategy": "no",
    "eval_steps": None,
    "load_best_model_at_end": False,
    "lr_scheduler_type": "linear",
    "save_steps": 500,
    "save_strategy": "steps",
}
EVALUATING = ("eval_delay", "eval_on_start", "eval_steps", "eval_strategy", "do_eval")
"""Keys that say when held-out pairs are measured. Teachers have no held-out pairs."""


def clash_problems(given: Mapping[str, Any]) -> list[str]:
    """Return what transformers would refuse of keys that are right one by one.

    Transformers would refuse them after the model is loaded, or in a later stage.
    """
    held, problems = {**_DEFAULTS, **TRAINING_DEFAULTS, **given}, []
    if given.get("bf16") and given.get("fp16"):
        problems.append("bf16 and fp16 are both true: set one of them to false")
    if given.get("max_steps") == 0:
        problems.append(
            "max_steps: 0 is no number of steps: give one, or remove it to train epochs"
        )
    for key in ("eval_steps", "logging_steps", "save_steps"):
        steps = held[key]
        if steps is not None and steps > 1 and steps != int(steps):
            problems.append(f"{key}: {steps} is neither a whole number nor a share below 1")
    if held["lr_scheduler_type"] == "reduce_lr_on_plateau" and held["eval_strategy"] == "no":
        problems.append(
            "lr_scheduler_type: reduce_lr_on_plateau follows the held-out loss: set eval_strategy"
        )
    if held["save_strategy"] == "best" and held["eval_strategy"] == "no":
        problems.append("save_strategy: best needs held-out losses to choose by: set eval_strategy")
    elif held["load_best_model_at_end"]:
        problems += _best_model_problems(held)
    return problems


def _best_model_problems(held: Mapping[str, Any]) -> list[str]:
    """Return why the best checkpoint cannot be told or is not saved."""
    measured, saved = held["eval_strategy"], held["save_strategy"]
    if measured == "no":
        return [
            "load_best_model_at_end: true needs held-out losses to choose by: set eval_strategy "
            f"to the save_strategy, {saved}"
            if saved != "no"
            else "load_best_model_at_end: true needs checkpoints and held-out losses to choose by: "
            "set eval_strategy and save_strategy to steps or epoch"
        ]
    if saved not in (measured, "best"):
        return [
            f"load_best_model_at_end: true needs eval_strategy ({measured}) and save_strategy "
            f"({saved}) to be the same"
        ]
    every, kept = held["eval_steps"] or held["logging_steps"], held["save_steps"]
    if saved == measured == "steps" and ((every < 1) != (kept < 1) or not _divides(every, kept)):
        return [
            f"load_best_model_at_end: true needs save_steps ({kept:g}) to be a multiple of "
            f"eval_steps ({every:g})"
        ]
    return []


def _divides(part: float, whole: float) -> bool:
    return (whole * 1_000_000) % (part * 1_000_000) == 0  # as transformers counts shares


def _parse(name: str) -> ast.Module:
    spec = importlib.util.find_spec("transformers")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise RuntimeError(
            "transformers is not installed, so the training keys of a recipe are unknown: "
            'pip install "transformers>=5.16,<6"'
        )
    path = Path(folders[0], name)
    if not path.is_file():
        raise RuntimeError(
            f"{path} does not exist: this release of transformers is laid out differently; "
            'pip install "transformers>=5.16,<6"'
        )
    return ast.parse(path.read_text(encoding="utf-8"))


def _enums(tree: ast.Module) -> dict[str, Any]:
    """Return the string enums of a module: {name: Literal of the values}."""
    return {
        node.name: Literal[tuple(line.value.value for line in node.body if _is_text(line))]
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(map(_is_text, node.body))
    }


def _is_text(line: ast.stmt) -> bool:
    return (
        isinstance(line, ast.Assign)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def _annotation(node: ast.expr, types: dict[str, Any]) -> Any:
    match node:
        case ast.Name(id=name):
            return types.get(name, Any)
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union([_annotation(left, types), _annotation(right, types)])
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _union([_annotation(inner, types), None])
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            return _union([_annotation(part, types) for part in parts])
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Constant(value=choice)):
            return Literal[choice]
        case ast.Subscript(value=ast.Name(id=name)):
            return types.get(name, Any)
    return Any


def _union(parts: list[Any]) -> Any:
    """`SchedulerType | str` accepts the values of the enum only: text has no other use there."""
    if Any in parts:
        return Any
    enums = [part for part in parts if getattr(part, "__origin__", None) is Literal]
    if str in parts and any(isinstance(enum.__args__[0], str) for enum in enums):
        parts = [part for part in parts if part is not str]
    return Union[tuple(parts)]  # noqa: UP007 - `|` takes no list
