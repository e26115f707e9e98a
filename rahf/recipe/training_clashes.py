"""Values of training arguments that clash, which transformers would find after the model is loaded.

Knows keys and values; builds no TrainingArguments.
"""

from collections.abc import Mapping
from typing import Any

from rahf.recipe.training_arguments import TRAINING_DEFAULTS, TRANSFORMERS_DEFAULTS
from rahf.recipe.training_values import unusable_problems
from rahf.recipe.unsupported import unsupported_problems


def clash_problems(given: Mapping[str, Any]) -> list[str]:
    """Return what transformers would refuse of keys that are valid one by one.

    Transformers would refuse them after the model is loaded, or in a later stage.
    """
    held, problems = {**TRANSFORMERS_DEFAULTS, **TRAINING_DEFAULTS, **given}, []
    if given.get("bf16") and given.get("fp16"):
        problems.append("bf16 and fp16 are both true: set one of them to false")
    if given.get("max_steps") == 0:
        problems.append("max_steps: 0 trains nothing: set 1 or more, or remove it to train epochs")
    if given.get("max_steps", -1) == -1 and not held["num_train_epochs"]:
        problems.append("num_train_epochs: 0 trains nothing: set more, or max_steps: 1 or more")
    for key in ("eval_steps", "logging_steps", "save_steps"):
        steps = held[key]
        if steps is not None and steps > 1 and steps != int(steps):
            problems.append(f"{key}: {steps} is neither a whole number nor a share below 1")
    if held["lr_scheduler_type"] == "reduce_lr_on_plateau" and held["eval_strategy"] == "no":
        problems.append(
            "lr_scheduler_type: reduce_lr_on_plateau follows the held-out loss: set eval_strategy"
        )
    if held["save_strategy"] == "best" and held["eval_strategy"] == "no":
        problems.append("save_strategy: best needs held-out losses to choose by: set eval_strategy")
    elif held["load_best_model_at_end"]:
        problems += _best_model_problems(held)
    problems += unsupported_problems(given)
    return [*problems, *unusable_problems(given, held["lr_scheduler_type"])]


def _best_model_problems(held: Mapping[str, Any]) -> list[str]:
    """Return why the best checkpoint is not known or not saved."""
    measured, saved = held["eval_strategy"], held["save_strategy"]
    if measured == "no":
        return [
            "load_best_model_at_end: true needs held-out losses to choose by: set eval_strategy "
            f"to the save_strategy, {saved}"
            if saved != "no"
            else "load_best_model_at_end: true needs checkpoints and held-out losses to choose by: "
            "set eval_strategy and save_strategy to steps or epoch"
        ]
    if saved not in (measured, "best"):
        return [
            f"load_best_model_at_end: true needs eval_strategy ({measured}) and save_strategy "
            f"({saved}) to be the same"
        ]
    every, kept = held["eval_steps"] or held["logging_steps"], held["save_steps"]
    if saved == measured == "steps" and ((every < 1) != (kept < 1) or not _divides(every, kept)):
        return [
            f"load_best_model_at_end: true needs save_steps ({kept:g}) to be a multiple of "
            f"eval_steps ({every:g})"
        ]
    return []


def _divides(part: float, whole: float) -> bool:
    return (whole * 1_000_000) % (part * 1_000_000) == 0  # as transformers counts shares
