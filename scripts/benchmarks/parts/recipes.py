"""A workload as a recipe: what `rahf align` would read, and what `rahf plan` says of it."""

from typing import Any

from parts.workload import Workload

from rahf.distributed.accelerate import Launch
from rahf.models.shapes import read_decoder
from rahf.plan.case import Case
from rahf.plan.estimate import StagePlan, estimate
from rahf.plan.lengths import Lengths
from rahf.recipe.recipe import Recipe, recipe_from_dict

SIDES = {"chosen_ids": "chosen", "rejected_ids": "rejected"}
PROMPTS = ("prompt", "positive_prompt", "negative_prompt")


def method_keys(workload: Workload) -> dict[str, Any]:
    """Return the method in its published settings."""
    return {
        "method": workload.method,
        "reference": workload.reference,
        "shift": "token",
        "retain_weight": 0.0,
        "sft_weight": 0.0,
        "dpo_weight": 0.0,
        "align_weight": 1.0,
        "response_source": "both",
        "positions": "response",
        "max_response_tokens": workload.max_response_tokens,
        "alpha": workload.alpha,
        "target_layers": list(workload.layers()),
        "distance": "l2",
        "layer_scale": "none",
    }


def recipe_of(workload: Workload) -> Recipe:
    """Return the recipe of a workload; its rows have no source that a recipe could name."""
    lora = workload.lora()
    return recipe_from_dict(
        {
            **method_keys(workload),
            "model_name_or_path": workload.model or workload.shape,
            "dataset_name": "drawn",
            "dataset_test_split": None,
            "output_dir": str(workload.folder / "out"),
            "teachers": {name: str(folder) for name, folder in workload.teachers().items()},
            "lora_r": lora.r,
            "lora_alpha": lora.lora_alpha,
            "lora_target_modules": sorted(lora.target_modules),
            "per_device_train_batch_size": 2 * workload.pairs,
            "dtype": workload.dtype,
            "bf16": workload.dtype == "bfloat16",
            "use_cpu": workload.device == "cpu",
            "load_in_4bit": workload.bits == 4,
            "max_steps": 1,
        }
    )


def planned(workload: Workload) -> StagePlan:
    """Return the plan of the alignment on the workload's own rows."""
    recipe = recipe_of(workload)
    decoder = read_decoder(workload.config().to_dict(), workload.shape or workload.model)
    rows = tuple(
        {name: len(row[f"{name}_ids"]) for name in PROMPTS}
        | {side: len(row[ids]) for ids, side in SIDES.items()}
        for row in workload.rows()
    )
    data = recipe.data
    lengths = Lengths(rows, data.max_prompt_length, data.max_length, instruction=0)
    [plan] = estimate(Case(recipe, decoder, Launch(), lengths, len(rows)))
    return plan
