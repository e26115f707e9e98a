"""Sequence classifiers that score a text, as reward models do: loaded whole, or refused.

Knows transformers and peft; knows no judge.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from rahf.distributed.sharding import refuse_incomplete
from rahf.foreign_warnings import new_head_expected
from rahf.models.adapters import base_of, is_adapter, put_adapter


def load_classifier(
    name: str | Path, init_kwargs: Mapping[str, Any], device: torch.device
) -> PreTrainedModel | PeftModel:
    """Load a sequence classifier, or an adapter that is one on its base, in evaluation mode.

    Raises:
        ValueError: a language model, whose head would be random; tensors that are missing or left
            over.
    """
    adapter, base, labels = is_adapter(name), str(name), {}
    if adapter:
        base, labels = base_of(name), {"num_labels": 1}
    with new_head_expected():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            base, output_loading_info=True, **labels, **init_kwargs
        )
    head = {key for key in report["missing_keys"] if key.startswith(("score.", "classifier."))}
    if head:
        if not (adapter and _brings(str(name), head)):
            raise ValueError(
                f"{name} is no reward model: it has no weights for {', '.join(sorted(head))}, so "
                "that its scores would be random. Give a sequence classifier, as rahf reward "
                "trains, or use the language model as choice:NAME."
            )
        report["missing_keys"] -= head
        report["unexpected_keys"] -= {"lm_head.weight", "embed_out.weight"}
    refuse_incomplete(base, report)
    return (put_adapter(model, name) if adapter else model).eval().to(device)


def _brings(adapter: str, head: set[str]) -> bool:
    """Whether an adapter's file holds the weights of a head."""
    own = load_peft_weights(adapter, device="cpu")
    return all(any(key.endswith(f".{wanted}") for key in own) for wanted in head)


def label_count(name: str | Path, **options: Any) -> int:
    """Return how many scores `load_classifier(name, ...)` gives a text; reads no weights."""
    if is_adapter(name):
        return 1
    return AutoConfig.from_pretrained(str(name), **options).num_labels
