"""Published settings of the methods that a user may come from: what a recipe's keys begin with.

Facts from the papers and their repositories, each with its departure in docs/method.md. Knows keys
and values; imports neither torch nor transformers.
"""

from collections.abc import Mapping
from typing import Any

# Fractions name, of the 32 blocks of the published models, the blocks that were published: 9 and
# 19 (indices 10 and 20 of hidden_states), 7, and 19 to 29 (20 to 30 of hidden_states).
PRESETS: dict[str, dict[str, Any]] = {
    "circuit_breakers": {
        "target_layers": "0.3,0.62",
        "response_source": "both",
        "pairs_together": True,
        "positions": "response",
        "max_response_tokens": 512,
        "distance": "l2",
        "layer_scale": "none",
        "rejected_weight": 10.0,
        "chosen_weight": 5.0,
        "retain_weight": 5.0,
        "weights_over_time": "crossing",
        "lora_r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": "all-linear",
        "learning_rate": 1e-4,
        "max_steps": 150,
        "per_device_train_batch_size": 16,
    },
    "rmu": {
        "target_layers": "0.22",
        "response_source": "rejected",
        "positions": "response",
        "max_response_tokens": 512,
        "alpha": 6.5,
        "distance": "squared_l2",
        "layer_scale": "none",
        "retain_weight": 1200.0,
        "retain_tokens": 512,
        "lora_target_modules": "all-linear",
        "max_steps": 150,
        "per_device_train_batch_size": 4,
    },
    "repbend": {
        "target_layers": "0.6-0.95",
        "response_source": "both",
        "pairs_together": True,
        "positions": "response_and_tail",
        "tail_tokens": 1,
        "max_response_tokens": 512,
        "distance": "l2",
        "layer_scale": "none",
        "rejected_weight": 0.5,
        "chosen_weight": 0.5,
        "similarity_weight": 0.1,
        "kl_weight": 0.3,
        "kl_rows": "retain",
        "kl_temperature": 2.0,
        "lora_r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_target_modules": "all-linear",
        "learning_rate": 1e-5,
        "max_steps": 450,
        "per_device_train_batch_size": 16,
    },
}


def preset(method: str) -> dict[str, Any]:
    """Published values for `RAHFConfig(output_dir, **preset("rmu"))`, `method` among them.

    Those of the LoRA are left out, since a LoraConfig holds them there.

    Raises:
        ValueError: a method without published values here.
    """
    if method not in PRESETS:
        raise ValueError(f"{method!r} has no preset; those that have are {', '.join(PRESETS)}")
    options = {key: value for key, value in PRESETS[method].items() if key[:5] != "lora_"}
    return {"method": method, **options}


def with_preset(given: Mapping[Any, Any]) -> dict[Any, Any]:
    """The keys of a recipe on top of its method's preset; what the recipe says holds."""
    published = dict(PRESETS.get(str(given.get("method")), {}))
    if "num_train_epochs" in given:
        published.pop("max_steps", None)  # which would win over the epochs
    return {**published, **given}
