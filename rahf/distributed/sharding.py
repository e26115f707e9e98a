"""A frozen base sharded across ranks (FSDP2), gathered block by block while it runs.

The base is sharded while it is loaded, so that no rank ever holds all of it. Frozen stages
are sharded as well as trained ones. Adapters are complete on every rank and are averaged by DDP:
optimiser and checkpoints are those of plain data parallelism. Knows launches and loading; knows no
method.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled

from rahf.distributed.accelerate import NOT_READ
from rahf.distributed.loaded_weights import check_loaded
from rahf.foreign_warnings import loading_report_checked
from rahf.overrides import set_existing

ASKED = "RAHF_SHARD_BASE"
"""Environment variable that keeps the launch's request for the rest of the process."""


def take_over_sharding() -> None:
    """Show accelerate plain data parallelism where the launch sets FSDP: rahf shards the base.

    Has to run before the first `Accelerator` is made; calling it again changes nothing.

    Raises:
        ValueError: the launch sets a key of FSDP that rahf does not read.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return
    for key, instead in NOT_READ.items():
        if parse_flag_from_env(key.upper()):
            raise ValueError(f"{key}: true in the accelerate configuration is not read: {instead}")
    os.environ[ASKED] = "true"
    os.environ["ACCELERATE_USE_FSDP"] = "false"


def check_world(state: PartialState, *, engine_chosen: bool = False) -> None:
    """Refuse a rank that is not connected to the others or lacks the engine: it would train alone.

    Args:
        engine_chosen: whether `state` is that of an Accelerator, which takes the engine.

    Raises:
        ValueError: a launcher has started several processes, and accelerate counts another number;
            it requests DeepSpeed, and accelerate takes another engine.
    """
    launched, engine = int(os.environ.get("WORLD_SIZE") or 1), state.distributed_type
    if launched > 1 and state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, but each of them runs alone (accelerate counts "
            f"{state.num_processes}). On CPUs, set use_cpu: true both in the recipe and in the "
            "accelerate configuration; otherwise each process needs a GPU of its own."
        )
    if launched > 1 and engine_chosen and _uses_deepspeed() and engine != DistributedType.DEEPSPEED:
        raise ValueError(
            f"the launch requests DeepSpeed, and accelerate takes {engine.value}: set use_cpu in "
            "the recipe as in the accelerate configuration."
        )


def is_sharded() -> bool:
    """Return whether this process loads its base sharded."""
    return parse_flag_from_env(ASKED) and PartialState().num_processes > 1


@contextmanager
def without_engine() -> Iterator[None]:
    """Load models without a DeepSpeed engine, because they are not trained.

    Under ZeRO-3 they are sharded as by FSDP.
    """
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if not (is_deepspeed_zero3_enabled() or (_uses_deepspeed() and stage == "3")):
        yield
        return
    reference = deepspeed._hf_deepspeed_config_weak_ref
    config = reference() if reference is not None else None
    deepspeed.unset_hf_deepspeed_config()
    os.environ[ASKED] = "true"
    try:
        yield
    finally:
        del os.environ[ASKED]
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)


def _uses_deepspeed() -> bool:
    return parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def load_placed(
    name: str,
    device: torch.device | None,
    options: Mapping[str, Any],
    depth: int | None = None,
) -> PreTrainedModel:
    """Load the model `name` with `options` of from_pretrained: all of it on `device`, or this
    rank's shard.

    Args:
        device: None where `options` place it.
        depth: the number of decoder blocks that are loaded; None: all.

    Raises:
        ValueError: tensors are missing, left over or not finite; quantised weights that are to be
            sharded; a release of transformers that cannot shard while it loads.
    """
    if not is_sharded():
        model = _load_complete(name, depth, **options)
        placed = is_deepspeed_zero3_enabled() or device is None
        return model if placed else model.to(device)
    if "quantization_config" in options:
        raise ValueError(
            "load_in_4bit and load_in_8bit cannot be combined with FSDP or ZeRO-3: quantised "
            "weights are not sharded. Use accelerate_configs/ddp.yaml, where every rank holds "
            "all of them, or omit the quantisation."
        )
    model = _load_complete(name, depth, distributed_config=_distributed_config(), **options)
    # Before any pass: FSDP2 leaves the head gathered after a pass, and freezing the gathered copy
    # does not freeze the shards.
    model.requires_grad_(False)
    # The Trainer would neither checkpoint nor, over gloo, average adapters beside such a base. DDP
    # does: see leave_to_data_parallelism.
    set_existing(model, "_is_distributed_loading_by_transformers", False)
    return model


def _load_complete(name: str, depth: int | None, **options) -> PreTrainedModel:
    """Load a model whose weights are those of its configuration, and finite."""
    with loading_report_checked(name):
        model, report = AutoModelForCausalLM.from_pretrained(
            name, output_loading_info=True, **options
        )
    check_loaded(name, model, report, depth)
    return model


def _distributed_config() -> Any:
    try:
        from transformers.distributed import DistributedConfig

        return DistributedConfig(fsdp_size=PartialState().num_processes)
    except (ImportError, TypeError):
        raise ValueError(
            f"transformers {transformers.__version__} cannot load a sharded model "
            '(DistributedConfig with fsdp_size): pip install "transformers>=5.23,<6", or launch '
            "without FSDP."
        ) from None


def leave_to_data_parallelism(model: nn.Module) -> None:
    """Let DDP average the trained parameters and ignore all others.

    Frozen weights are the same on every rank as they were loaded; DDP need not synchronise shards.
    """
    ignored = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    ignored += [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather the full base on every rank, where DeepSpeed has sharded it without an engine."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(list(model.parameters())):
        yield
