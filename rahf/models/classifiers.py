"""Sequence classifiers that score a text, as reward models do: loaded completely, or refused.

Knows transformers and peft; knows no judge.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from rahf.distributed.loaded_weights import check_loaded
from rahf.foreign_warnings import new_head_expected
from rahf.models.adapters import base_of, is_adapter, put_adapter
from rahf.models.shapes import refuse_sizes


def load_classifier(
    name: str | Path, init_kwargs: Mapping[str, Any], device: torch.device
) -> PreTrainedModel | PeftModel:
    """Load a sequence classifier, or an adapter that is one on its base, in evaluation mode.

    Raises:
        ValueError: a language model, whose head would be random; tensors that are missing, left
            over or not finite.
    """
    adapter, base, labels = is_adapter(name), str(name), {}
    if adapter:
        base, labels = base_of(name), {"num_labels": 1}
    model, new_head = _load_body(base, {**labels, **init_kwargs})
    if new_head and not (adapter and _brings(str(name), new_head)):
        raise ValueError(
            f"{name} is not a reward model: it has no weights for {', '.join(sorted(new_head))}, "
            "so that its scores would be random. Give a sequence classifier, as rahf reward "
            "trains, or use the language model as choice:NAME."
        )
    return (put_adapter(model, name) if adapter else model).eval().to(device)


def load_to_train(name: str, init_kwargs: Mapping[str, Any]) -> PreTrainedModel:
    """Load a model as a classifier of one score; a language model gets a new head, which is random.

    Raises:
        ValueError: an adapter; tensors of the decoder that are missing or left over.
    """
    if is_adapter(name):
        raise ValueError(
            f"{name} is an adapter: merge it into its base (rahf export --formats merged) and "
            "train on the merged model."
        )
    return _load_body(name, {"num_labels": 1, **init_kwargs})[0]


def _load_body(name: str, options: Mapping[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """Return a classifier whose decoder is complete, and the names of its head's new weights.

    In the place of a new head the checkpoint may have one of another kind, as language models do.
    """
    refuse_sizes(name, PreTrainedConfig.get_config_dict(name)[0])
    with new_head_expected():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, **options
        )
    missing, unexpected = report["missing_keys"], report["unexpected_keys"]
    head = {key for key in missing if key.startswith(("score.", "classifier."))}
    if head:
        unexpected = {key for key in unexpected if key.startswith(f"{model.base_model_prefix}.")}
    found = {"missing_keys": missing - head, "unexpected_keys": unexpected}
    check_loaded(name, model, found)
    return model, head


def _brings(adapter: str, head: set[str]) -> bool:
    """Return whether an adapter's file holds the weights of a head."""
    own = load_peft_weights(adapter, device="cpu")
    return all(any(key.endswith(f".{wanted}") for key in own) for wanted in head)


def label_count(name: str | Path, **options: Any) -> int:
    """Return how many scores `load_classifier(name, ...)` gives a text; reads no weights."""
    if is_adapter(name):
        return 1
    return AutoConfig.from_pretrained(str(name), **options).num_labels
