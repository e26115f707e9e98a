"""Adapters on one copy of the base weights: the policy (`default`) beside its teachers.

All that adds, starts, switches or checks an adapter. Knows peft; knows no loss and no data.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, find_adapter_config_file

from rahf.data.hub import refuse_missing
from rahf.distributed.sharding import is_sharded, load_placed, without_engine
from rahf.models.adapter_files import POLICY, put_adapter, refuse_dora, refuse_trainable_tokens
from rahf.models.base_weights import keeping_base, refuse_trainable_base
from rahf.models.capture import find_blocks
from rahf.models.lora_targets import on_blocks, report_untouched_experts
from rahf.models.own_training import turn_off_dropout, turn_off_router_logits
from rahf.models.shapes import refuse_sizes


def base_name(model: str | nn.Module) -> str:
    """Return the name or folder of the base of `model`."""
    return model if isinstance(model, str) else model.config._name_or_path


def base_model(
    model: str | PreTrainedModel | PeftModel,
    init_kwargs: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel | PeftModel:
    """Return `model` itself, or load the model of that name, in float32 by default.

    Args:
        device: where a model given by name is put; None where `init_kwargs` place it. Under FSDP
            it is sharded across ranks.

    Raises:
        ValueError: as for `load_placed`; its config.json has sizes that no model has.
    """
    if not isinstance(model, str):
        return model
    revision = (init_kwargs or {}).get("revision")
    refuse_missing(model, revision)
    refuse_sizes(model, PreTrainedConfig.get_config_dict(model, revision=revision)[0])
    return load_placed(model, device, {"dtype": torch.float32, **(init_kwargs or {})})


def load_model(
    name: str | Path,
    init_kwargs: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    base: str | None = None,
) -> PreTrainedModel | PeftModel:
    """Load a model, or an adapter on its base, in evaluation mode.

    Args:
        base: replaces the base that the adapter's configuration names.

    Raises:
        ValueError: `base` is given for what is not an adapter; an adapter that names no base.
    """
    if is_adapter(name):
        model = put_adapter(base_model(base or base_of(name), init_kwargs), name)
    elif base is not None:
        raise ValueError(f"{name} is not an adapter, so it takes no base ({base}); omit the base.")
    else:
        model = base_model(str(name), init_kwargs)
    return model.eval() if device is None else model.eval().to(device)


def base_of(name: str | Path) -> str | None:
    """Return the base that an adapter names; None for a full model.

    Raises:
        ValueError: an adapter that names no base, or neither a folder here nor a model of the Hub.
    """
    if not is_adapter(name):
        return None
    base = PeftConfig.from_pretrained(str(name)).base_model_name_or_path
    if not base:
        raise ValueError(f"{name}: this adapter names no base; give --base.")
    cure = "give --base, or write the folder into adapter_config.json"
    refuse_missing(base, what=f"{name}: the base {base!r} of this adapter", cure=cure)
    return base


def load_tokenizer_of(
    name: str | Path, base: str | None = None, **options: Any
) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside a model or adapter, or that of the adapter's base."""
    adapter = is_adapter(name)
    own = cached_file(
        str(name), "tokenizer_config.json", _raise_exceptions_for_missing_entries=False
    )
    if own is None and adapter:
        name = base or base_of(name)
    return AutoTokenizer.from_pretrained(str(name), **options)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding id, or the end-of-text id: padding is known by its mask."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


@contextmanager
def scaled(model: PeftModel, adapter: str, factor: float) -> Iterator[None]:
    """Multiply one adapter's update by a factor."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        if adapter in layer.scaling:
            layer.scaling[adapter] *= factor
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


@contextmanager
def at_strength(model: nn.Module, strength: float | int | None) -> Iterator[None]:
    """Run `model` with its policy at a strength; 0: as the base, None: as it is set now."""
    if strength is None or not isinstance(model, PeftModel):
        assert not strength, "a model without an adapter has strength 0"
        yield
        return
    with (
        frozen_pass(model, POLICY if strength else None),
        scaled(model, POLICY, float(strength or 1)),
    ):
        yield


def depth_of(model: nn.Module) -> int:
    """Return the number of decoder blocks."""
    return len(find_blocks(model).modules)


def attach_policy(
    base: PreTrainedModel | PeftModel,
    config: LoraConfig,
    layers: range,
    start: str | Path | PreTrainedModel | None = None,
) -> PeftModel:
    """Put the policy's LoRA, in float32, on the given blocks of `base`.

    Args:
        start: folder of an adapter that the policy starts as a copy of, configuration included.

    Raises:
        ValueError: `start` is a full model, or an adapter of another base; a pattern of modules
            that matches nothing in the blocks; a LoRA that changes or trains the base's weights.
    """
    if isinstance(base, PeftModel):
        model = base
        model.set_adapter(POLICY)
    elif start is not None:
        model = _copy_of(start, base)
    else:
        if is_sharded():
            refuse_dora(config, "the policy's adapter")
        blocks = find_blocks(base).modules
        with keeping_base(base, POLICY, "the policy's LoRA (peft_config)"):
            model = get_peft_model(base, on_blocks(config, base, blocks, layers), POLICY)
        report_untouched_experts(blocks[: layers.stop])
    refuse_trainable_tokens(model.peft_config[POLICY], "the policy's LoRA (peft_config)")
    refuse_trainable_base(model, POLICY)
    for parameter in trainable(model):
        # Pure bfloat16 weights hardly move at usual learning rates.
        parameter.data = parameter.data.float()
    for block in find_blocks(model).modules[layers.stop :]:
        # A copied teacher may reach above the top target layer, where no gradient of the loss
        # arrives.
        block.requires_grad_(False)
    turn_off_dropout(model)
    turn_off_router_logits(model)
    return model


def _copy_of(start: str | Path | PreTrainedModel, base: PreTrainedModel) -> PeftModel:
    """Return `base` with a trainable copy of an adapter as the policy."""
    if isinstance(start, PreTrainedModel) or not is_adapter(start):
        given = base_name(start) if isinstance(start, PreTrainedModel) else start
        raise ValueError(
            f"the policy cannot start as a copy of {given}, which is a full model, not an "
            "adapter. Give an adapter as that teacher, or make the full model the base "
            "(model_name_or_path) and set reference: base."
        )
    check_same_base(start, base_name(base))
    return put_adapter(base, start, trainable=True)


def add_teachers(
    model: PeftModel, teachers: Mapping[str, str | Path | PreTrainedModel], depth: int
) -> dict[str, PreTrainedModel]:
    """Give `model` its teachers: adapter folders become frozen adapters of it, full models are
    returned by name.

    Raises:
        ValueError: an adapter was trained on another base.
    """
    full = {}
    with keeping_trainable(model):
        for name, teacher in teachers.items():
            if isinstance(teacher, PreTrainedModel):
                full[name] = teacher.requires_grad_(False).eval()
            elif is_adapter(teacher):
                check_same_base(teacher, base_name(model))
                put_adapter(model, teacher, name)
            else:
                with without_engine():
                    full[name] = load_blocks(teacher, depth, model.device, dtype=model.dtype)
        model.set_adapter(POLICY)
    return full


def is_adapter(folder: str | Path) -> bool:
    """Return whether `folder`, or the repository of that name, holds an adapter.

    Raises:
        ValueError: there is neither.
    """
    refuse_missing(folder)
    return find_adapter_config_file(str(folder)) is not None


def load_blocks(
    folder: str | Path, depth: int, device: torch.device | None = None, **loading
) -> PreTrainedModel:
    """Load the first `depth` blocks of a full model, frozen; those above are never read."""
    config = AutoConfig.from_pretrained(folder)
    config.get_text_config().num_hidden_layers = depth
    model = load_placed(str(folder), device, {"config": config, **loading}, depth)
    return model.requires_grad_(False).eval()


def check_same_base(folder: str | Path, base_name: str) -> None:
    """Refuse an adapter trained on another base: its hidden states would be noise.

    Raises:
        ValueError: `base_model_name_or_path` in the adapter's configuration names another model.
    """
    config = PeftConfig.from_pretrained(str(folder))
    given = config.base_model_name_or_path
    if given and base_name and not same_model(given, base_name):
        raise ValueError(
            f"the adapter {folder} was trained on {given!r}, but this run's base is {base_name!r}. "
            "Give an adapter of this base, or set model_name_or_path to the adapter's."
        )


def same_model(first: str, second: str) -> bool:
    """Return whether two names mean one model: equal, or one folder written in two ways."""
    return first == second or Path(first).resolve() == Path(second).resolve()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that receive a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@contextmanager
def keeping_trainable(model: nn.Module) -> Iterator[None]:
    """Keep what is trainable: PEFT makes an adapter trainable when it loads or activates it."""
    parameters = trainable(model)
    try:
        yield
    finally:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def frozen_pass(model: PeftModel, adapter: str | None) -> Iterator[None]:
    """Run `model` as one of its adapters, or as the base (None), without gradients and dropout.

    Restores what was active (the policy, or what an outer pass had chosen), the training mode and
    what is trainable.

    Raises:
        ValueError: the model has no such adapter.
    """
    if adapter is not None and adapter not in model.peft_config:
        raise ValueError(
            f"the model has no adapter {adapter!r}: it has {', '.join(model.peft_config)}."
        )
    tuner = model.base_model
    before, off = tuner.active_adapter, _adapters_off(model)
    parameters, training = trainable(model), model.training
    _activate(tuner, before if adapter is None else adapter, off=adapter is None)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        _activate(tuner, before, off=off)
        for parameter in parameters:
            parameter.requires_grad_(True)
        model.train(training)


def _activate(tuner: BaseTuner, adapter: str | list[str], *, off: bool) -> None:
    """Make an adapter the active one, and turn all of them off or on."""
    tuner.enable_adapter_layers()
    tuner.set_adapter(adapter, inference_mode=True)
    if off:
        tuner.disable_adapter_layers()


def _adapters_off(model: nn.Module) -> bool:
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return any(layer.disable_adapters for layer in layers)
