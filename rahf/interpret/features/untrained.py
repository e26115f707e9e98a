"""The null of a trained model: one of the same shape with the weights that a training starts from.

Knows models; reads nothing.
"""

import copy

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from rahf.models.adapters import base_name


def untrained_like(model: PreTrainedModel | PeftModel, seed: int) -> PreTrainedModel:
    """Return a model of the same shape with the random weights that a training starts from.

    Its name includes it, in the origin of a dictionary that is trained on it too.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(copy.deepcopy(base.config))
    made.config._name_or_path = f"{base_name(base)} with random weights of seed {seed}"
    return made.to(device=base.device, dtype=base.dtype).eval().requires_grad_(False)
