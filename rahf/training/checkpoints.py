"""Checkpoints that depend on no engine: the trained weights and their optimiser state, by name.

What DeepSpeed shards across ranks is gathered before it is written and sharded when it is read, so
that a run may resume under another engine or in one process. A manifest of checksums, written last,
distinguishes a complete checkpoint from a damaged one.
"""

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from rahf.artifacts import MANIFEST
from rahf.models.adapters import POLICY

ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "checkpoint-"

State = dict[str, dict[str, Any]]
"""{parameter: {key of its optimiser state: value}}"""


# weights


def policy_weights(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Return the policy's weights by parameter name, gathered, in the precision of their training.

    Every rank has to call it.
    """
    zero = _zero_of(optimizer)
    return {
        name: _gathered_weight(parameter, zero) if zero else parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or f".{POLICY}." in name
    }


def _gathered_weight(parameter: nn.Parameter, zero: Any) -> Tensor:
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        return safe_get_full_fp32_param(parameter).detach()
    with GatheredParameters([parameter] if _is_stage_3(zero) else []):
        return parameter.detach().clone()


def load_policy(model: PeftModel, folder: Path) -> None:
    """Put the weights of a checkpoint into a model that no engine has wrapped yet."""
    set_peft_model_state_dict(model, load_file(folder / ADAPTER_FILE), adapter_name=POLICY)


# optimiser


def optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Return the state of each trained parameter, gathered, and the settings of the groups.

    Every rank has to call it.
    """
    named, zero = _trained(model), _zero_of(optimizer)
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    if zero:
        return {"state": _gathered(named, zero), "groups": groups}
    state = {name: dict(optimizer.state[parameter]) for name, parameter in named.items()}
    return {"state": state, "groups": groups}


def restore(model: nn.Module, optimizer: Any, folder: Path, saved: Mapping[str, Any]) -> None:
    """Put what `optimizer_state` gave into the optimiser of this engine, or of another one.

    Args:
        folder: checkpoint that `load_policy` has read; an engine that trains copies of the weights
            in float32 takes them from there as well.
    """
    named, zero = _trained(model), _zero_of(optimizer)
    if zero:
        _scatter(named, zero, saved["state"])
        weights = load_file(folder / ADAPTER_FILE)
        for name, parameter in named.items():
            _set_gathered(parameter, weights[name.replace(f".{POLICY}.", ".")], None, zero)
    else:
        _put(named, optimizer, saved["state"])
    for group, settings in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(settings)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _put(named: Mapping[str, nn.Parameter], optimizer: Any, state: State) -> None:
    whole = optimizer.state_dict()
    name_of = {parameter: name for name, parameter in named.items()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    whole["state"] = {index: state[name_of[parameter]] for index, parameter in enumerate(order)}
    optimizer.load_state_dict(whole)


# DeepSpeed: flat vectors of float32 weights, sharded across ranks


def _zero_of(optimizer: Any) -> Any:
    """Return DeepSpeed's optimiser inside accelerate's wrapper; None under any other engine."""
    inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return inner if type(inner).__module__.startswith("deepspeed.runtime.zero") else None


def _is_stage_3(zero: Any) -> bool:
    return type(zero).__name__ == "DeepSpeedZeroOptimizer_Stage3"


def _flat_parts(zero: Any) -> list[Tensor]:
    """Return what this rank's inner optimiser steps."""
    if _is_stage_3(zero):
        return list(zero.fp32_partitioned_groups_flat)
    return list(zero.single_partition_of_fp32_groups)


def _gathered(named: Mapping[str, nn.Parameter], zero: Any) -> State:
    from deepspeed.utils import safe_get_full_optimizer_state

    flat = next((part for part in _flat_parts(zero) if zero.optimizer.state.get(part)), None)
    kept = zero.optimizer.state[flat] if flat is not None else {}
    pieces = [key for key, value in kept.items() if torch.is_tensor(value) and value.dim()]
    shared = {key: value for key, value in kept.items() if key not in pieces}
    # Each parameter counts its own steps: a count that is shared would be raised by all of them.
    return {
        name: {key: safe_get_full_optimizer_state(parameter, key) for key in pieces}
        | copy.deepcopy(shared)
        for name, parameter in named.items()
    }


def _scatter(named: Mapping[str, nn.Parameter], zero: Any, state: State) -> None:
    first = next(iter(state.values()))
    pieces = [key for key, value in first.items() if torch.is_tensor(value) and value.dim()]
    for flat in _flat_parts(zero):
        zero.optimizer.state[flat] = {key: torch.zeros_like(flat) for key in pieces} | {
            key: copy.deepcopy(value) for key, value in first.items() if key not in pieces
        }
    if not _is_stage_3(zero):
        zero._lazy_init_hp_params_optimizer_state()
    for name, parameter in named.items():
        for key in pieces:
            _set_gathered(parameter, state[name][key], key, zero)


def _set_gathered(parameter: nn.Parameter, value: Tensor, key: str | None, zero: Any) -> None:
    """Set the float32 weight (key None) or a part of its optimiser state from a gathered value."""
    if not _is_stage_3(zero):
        parameter.set_full_hp_param(value.to(parameter.device), key)
        return
    # The setter of gathered values does not expect that the last rank's piece is padded.
    size = parameter.ds_tensor.numel()
    piece = value.new_zeros(size)
    given = value.flatten()[torch.distributed.get_rank() * size :][:size]
    piece[: given.numel()] = given
    zero.set_local_hp_param(piece.to(parameter.ds_tensor.device), parameter, key)


# folders


def write_manifest(folder: Path) -> None:
    """Write the checksum of every file; its presence marks the folder as complete."""
    sums = {path.name: _checksum(path) for path in sorted(folder.iterdir()) if path.is_file()}
    (folder / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, in words; None where it is intact."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so that it was not written to its end"
    except ValueError:
        return f"its {MANIFEST} is damaged"
    if not isinstance(sums, dict):
        return f"its {MANIFEST} is damaged"
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _checksum(path) != expected:
            return f"{name} is not what was written"
    return None


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoint folders of a run, that of most steps first.

    Files and other names, such as checkpoint-\N{SUPERSCRIPT TWO}, are no checkpoints.
    """
    found = {
        int(path.name[len(PREFIX) :]): path
        for path in folder.glob(f"{PREFIX}*")
        if re.fullmatch("[0-9]+", path.name[len(PREFIX) :]) and path.is_dir()
    }
    return [found[steps] for steps in sorted(found, reverse=True)]


def make_way(path: Path) -> None:
    """Remove an older checkpoint where a new one is put; keep a file of that name beside it."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.replace(path.with_name(f"{path.name}.kept"))
