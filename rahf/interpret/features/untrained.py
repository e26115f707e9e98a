"""The null of a trained model: one of the same shape with the weights that a training starts from.

Knows models; reads nothing.
"""

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel


def untrained_like(model: PreTrainedModel | PeftModel, seed: int) -> PreTrainedModel:
    """Return a model of the same shape with the random weights that a training starts from."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(base.config)
    return made.to(device=base.device, dtype=base.dtype).eval().requires_grad_(False)
