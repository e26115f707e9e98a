"""Values of training arguments of the right type that transformers would refuse later.

Transformers would refuse them when the model is loaded, or after a stage. Knows keys and values;
builds no TrainingArguments.
"""

import ast
import functools
from collections.abc import Mapping
from typing import Any

from rahf.recipe.transformers_source import parse_source

_OWN_ARGUMENTS = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}

CONSTANT = ("constant", "constant_with_warmup")
"""Schedules that take no arguments."""


def unusable_problems(given: Mapping[str, Any], scheduler: str) -> list[str]:
    """Return problems of keys whose types are right.

    scheduler: the effective lr_scheduler_type.
    """
    choices = {"ddp_backend": _backends, "debug": _debug_options}
    problems = [
        f"{key}: {word!r} is not one of {', '.join(known())}"
        for key, known in choices.items()
        for word in _words(given.get(key))
        if word not in known()
    ]
    config = given.get("accelerator_config")
    if isinstance(config, dict):
        problems += _unknown_keys("accelerator_config", config, _accelerator_keys())
    arguments = given.get("lr_scheduler_kwargs")
    if arguments and scheduler not in CONSTANT:
        problems += _scheduler_problems(arguments, scheduler)
    for part in (given.get("optim_args") or "=").split(","):
        if part.count("=") != 1:
            problems.append(
                f"optim_args: {part.strip()!r} is not name=value; separate several by commas"
            )
    return problems


def _words(value: Any) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else (value or "").split()


def _unknown_keys(key: str, given: Mapping[Any, Any], known: tuple[str, ...]) -> list[str]:
    return [
        f"{key}: unknown key {name!r}, known are {', '.join(known)}"
        for name in given
        if name not in known
    ]


def _scheduler_problems(given: Mapping[Any, Any], scheduler: str) -> list[str]:
    known = _scheduler_arguments().get(scheduler)
    place = f"lr_scheduler_kwargs (lr_scheduler_type: {scheduler})"
    return [] if known is None else _unknown_keys(place, given, known or ("none",))


@functools.cache
def _scheduler_arguments() -> dict[str, tuple[str, ...] | None]:
    """Return {schedule: arguments}; None for one that takes any."""
    tree = parse_source("optimization.py")
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    names = _values_by_name("trainer_utils.py", "SchedulerType")
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets) == "TYPE_TO_SCHEDULER_FUNCTION"
    )
    found = {}
    for key, function in zip(table.keys, table.values, strict=True):
        taken = functions[function.id]
        arguments = (part.arg for part in taken.args if part.arg not in _OWN_ARGUMENTS)
        found[names[key.attr]] = None if taken.kwarg else tuple(arguments)
    return found


def _values_by_name(module: str, enum: str) -> dict[str, str]:
    """Return {member: value} of an enum of transformers."""
    return {
        line.targets[0].id: line.value.value
        for line in _body(module, enum)
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant)
    }


def _body(module: str, name: str) -> list[ast.stmt]:
    tree = parse_source(module)
    return next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)


@functools.cache
def _debug_options() -> tuple[str, ...]:
    return tuple(_values_by_name("debug_utils.py", "DebugOption").values())


@functools.cache
def _accelerator_keys() -> tuple[str, ...]:
    body = _body("trainer_pt_utils.py", "AcceleratorConfig")
    return tuple(line.target.id for line in body if isinstance(line, ast.AnnAssign))


@functools.cache
def _backends() -> tuple[str, ...]:
    for line in _body("training_args.py", "TrainingArguments"):
        if isinstance(line, ast.AnnAssign) and line.target.id == "ddp_backend":
            listed = [node for node in ast.walk(line.value) if isinstance(node, ast.List)]
            return tuple(ast.literal_eval(listed[0]))
    raise RuntimeError("training_args.py of the installed transformers names no ddp_backend")


@functools.cache
def attention_kernels() -> tuple[str, ...]:
    """Return names that attn_implementation takes beside those of kernels on the Hub."""
    for line in _body("modeling_utils.py", "AttentionInterface"):
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Dict):
            return ("eager", *(key.value for key in line.value.keys))
    raise RuntimeError("modeling_utils.py of the installed transformers holds no attention kernels")


@functools.cache
def causal_families() -> frozenset[str]:
    """Return the model_types that transformers loads as a causal language model."""
    for line in parse_source("models/auto/modeling_auto.py").body:
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Call):
            [target] = line.targets
            if isinstance(target, ast.Name) and target.id == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES":
                return frozenset(dict(ast.literal_eval(line.value.args[0])))
    raise RuntimeError("modeling_auto.py of the installed transformers names no causal models")
