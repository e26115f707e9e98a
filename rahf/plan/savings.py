"""Settings that change what a case costs: each on its own, and those that make it fit.

Knows recipes and launches; what a setting saves is estimated anew, never computed here.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

from rahf.plan.case import Case
from rahf.plan.estimate import StagePlan, estimate
from rahf.plan.passes import EVAL_BATCH, TRAIN_BATCH
from rahf.recipe.method_options import cache_problems

MOST_PROCESSES = 4096


class Setting(NamedTuple):
    """A change of a case, in the words of a recipe or of the command line."""

    kind: str  # of two settings of a kind only one can be made
    text: str
    made: Callable[[Case], Case]


def changes(case: Case) -> list[Setting]:
    """Return every saving, changed: made where it is not, undone where it is."""
    method, model = case.recipe.method, case.recipe.model
    found = []
    if case.early_exit and case.top < case.decoder.layers:
        text = f"without early exit after block {case.top - 1} of 0-{case.decoder.layers - 1}"
        found.append(Setting("depth", text, lambda case: replace(case, early_exit=False)))
    found.append(_checkpointing(not _checkpoints(case)))
    if method.facts.contrasts_views:
        found.append(_shift("mean" if method.shift == "token" else "token"))
    keeps = not (method.compares_predictions or cache_problems(method))
    if method.target_cache is None and keeps:
        found.append(_cached())
    found.append(_half() if model.dtype == "float32" else _single())
    if not (model.load_in_8bit or model.load_in_4bit):
        found += [_quantised(8), _quantised(4)]
    if _largest_batch(case) > _least_batch(case):
        found.append(_small_batches(_least_batch(case)))
    engines = ("ddp", "zero2", "zero3", "fsdp2") if case.launch.processes > 1 else ()
    return found + [
        _engine(name, case.launch.processes) for name in engines if name != case.launch.engine
    ]


def fitting(case: Case, device_bytes: float) -> tuple[list[Setting], float] | None:
    """Return the fewest settings with which every stage fits, the cheaper ones first, and the bytes
    of the largest stage then; None where none of them is enough.
    """
    for chosen in _remedies(case):
        changed = reduce(lambda made, setting: setting.made(made), chosen, case)
        most = largest(estimate(changed))
        if most <= device_bytes:
            return chosen, most
    return None


def largest(plan: tuple[StagePlan, ...]) -> float:
    """Return bytes of the stage that needs most."""
    return max(stage.total for stage in plan)


def _remedies(case: Case) -> Iterator[list[Setting]]:
    own = [_small_evaluation(2 if case.recipe.method.dpo_weight else 1)]
    if not _checkpoints(case):
        own.append(_checkpointing(True))
    if _largest_batch(case) > _least_batch(case):
        own.append(_small_batches(_least_batch(case)))
    if case.recipe.model.dtype == "float32":
        own.append(_half())
    launch, model = case.launch, case.recipe.model
    quantised = model.load_in_8bit or model.load_in_4bit
    offered = list(own)
    if launch.processes > 1 and not launch.shards_parameters and not quantised:
        offered += [_engine(name, launch.processes) for name in ("fsdp2", "zero3")]
    if not quantised and not launch.shards_parameters and not launch.cpu:
        offered += [_quantised(8), _quantised(4)]
    for count in range(1, 5):
        for chosen in itertools.combinations(offered, count):
            if len({setting.kind for setting in chosen}) == count:
                yield list(chosen)
    if quantised:
        return
    processes = 2 * launch.processes
    while processes <= MOST_PROCESSES:
        yield [_engine("fsdp2", processes)]
        yield [*own, _engine("fsdp2", processes)]
        processes *= 2


def _checkpoints(case: Case) -> bool:
    training = case.recipe.training
    names = ("activation_checkpointing", "gradient_checkpointing")
    return any(training.get(name) for name in names)


def _largest_batch(case: Case) -> int:
    given = (case.recipe.training, case.recipe.teacher_training)
    return max(training.get("per_device_train_batch_size", TRAIN_BATCH) for training in given)


def _keyed(case: Case, **sections: dict[str, Any]) -> Case:
    """Return the case with other values for keys of its recipe, and of its teachers' training."""
    recipe = case.recipe
    for name in ("model", "method"):
        if name in sections:
            recipe = replace(recipe, **{name: replace(getattr(recipe, name), **sections[name])})
    if "training" in sections:
        recipe = replace(
            recipe,
            training=recipe.training | sections["training"],
            teachers_training=recipe.teachers_training | sections["training"],
        )
    return replace(case, recipe=recipe)


def _checkpointing(on: bool) -> Setting:
    keys = {"activation_checkpointing": on, "gradient_checkpointing": on}
    text = f"activation_checkpointing: {str(on).lower()}"
    return Setting("activations", text, lambda case: _keyed(case, training=keys))


def _shift(kind: str) -> Setting:
    return Setting("shift", f"shift: {kind}", lambda case: _keyed(case, method={"shift": kind}))


def _cached() -> Setting:
    def made(case: Case) -> Case:
        return _keyed(case, method={"target_cache": "FOLDER"})

    return Setting("cache", "target_cache: FOLDER", made)


def _half() -> Setting:
    def made(case: Case) -> Case:
        return _keyed(case, model={"dtype": "bfloat16"}, training={"bf16": True, "fp16": False})

    return Setting("dtype", "dtype: bfloat16 with bf16: true", made)


def _single() -> Setting:
    def made(case: Case) -> Case:
        case = replace(case, launch=case.launch._replace(mixed_precision="no"))
        return _keyed(case, model={"dtype": "float32"}, training={"bf16": False, "fp16": False})

    return Setting("dtype", "dtype: float32 with bf16: false", made)


def _quantised(bits: int) -> Setting:
    def made(case: Case) -> Case:
        return _keyed(_half().made(case), model={f"load_in_{bits}bit": True})

    return Setting("dtype", f"load_in_{bits}bit: true with bf16: true", made)


def _least_batch(case: Case) -> int:
    """Return the rows that cannot be torn apart: one, or the two responses of a pair."""
    return 2 if case.recipe.method.pairs_together else 1


def _small_batches(rows: int) -> Setting:
    """Return the fewest rows a batch, and as many accumulated as there were: the same step."""

    def made(case: Case) -> Case:
        recipe = case.recipe
        return replace(
            case,
            recipe=replace(
                recipe,
                training=recipe.training | _accumulated(recipe.training, rows),
                teachers_training=recipe.teachers_training
                | _accumulated(recipe.teacher_training, rows),
            ),
        )

    text = f"per_device_train_batch_size: {rows}, accumulating the rest"
    return Setting("batch", text, made)


def _accumulated(training: dict[str, Any], rows: int) -> dict[str, int]:
    batch = training.get("per_device_train_batch_size", TRAIN_BATCH)
    return {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": -(-batch // rows)
        * training.get("gradient_accumulation_steps", 1),
    }


def _small_evaluation(rows: int) -> Setting:
    def made(case: Case) -> Case:
        size = case.recipe.training.get("per_device_eval_batch_size", EVAL_BATCH)
        return _keyed(case, training={"per_device_eval_batch_size": min(rows, size)})

    return Setting("evaluation", f"per_device_eval_batch_size: {rows}", made)


def _engine(name: str, processes: int) -> Setting:
    def made(case: Case) -> Case:
        return replace(case, launch=case.launch._replace(engine=name, processes=processes))

    flags = f"--accelerate_config {name} --num_processes {processes}"
    return Setting("engine", flags, made)
