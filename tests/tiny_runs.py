"""Alignments and teachers of the tiny family that take a fraction of a second a run."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_models import Family, lora, tiny_dataset, tiny_tokenizer
from torch import Tensor
from transformers import TrainerCallback

from rahf.recipe.methods import METHODS
from rahf.trainer import RAHFTrainer
from rahf.trainer_config import RAHFConfig
from rahf.training.adapter_trainer import AdapterTrainer

QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}


class KilledError(BaseException):
    """Simulates that the machine is switched off."""


class KillAfter(TrainerCallback):
    """Ends the run with an exception at the start of step `steps` + 1."""

    def __init__(self, steps: int):
        self._steps = steps

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self._steps:
            raise KilledError


def alignment_trainer(
    family: Family,
    folder: Path,
    *,
    pairs: int = 4,
    eval_pairs: int = 0,
    retain_texts: Sequence[list[int]] | None = (),
    callbacks: Sequence[TrainerCallback] = (),
    teachers: dict | None = None,
    peft_config=None,
    base=None,
    **options,
) -> RAHFTrainer:
    """Return a trainer of six steps of two responses that saves every step, with the family's
    teachers.

    The distance to the target is its only term, unless `options` or the method bring another.
    """
    args = RAHFConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 2,
            "max_steps": 6,
            "save_steps": 1,
            "learning_rate": 1e-2,
            "target_layers": [0, 2],
            "shift": "token",
            "retain_weight": 0.0,
            "dpo_weight": 0.0,
            "pairs_together": False,
            "seed": 3,
            **QUIET,
            **options,
        }
    )
    if teachers is None:
        names = METHODS[args.method].views(args.reference).teachers()
        teachers = {name: family.adapters[name] for name in names}
    return RAHFTrainer(
        base if base is not None else family.load_base(),
        args,
        tiny_dataset(pairs),
        tiny_dataset(eval_pairs, seed=1, first_row=500) if eval_pairs else None,
        tiny_tokenizer(),
        peft_config or lora(),
        teachers,
        retain_texts=retain_texts,
        callbacks=list(callbacks),
    )


def policy_weights(trainer: AdapterTrainer) -> dict[str, Tensor]:
    """Return a copy of the adapter that is trained."""
    return {
        name: parameter.detach().clone()
        for name, parameter in trainer.model.named_parameters()
        if ".default." in name
    }


def assert_same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Compare bit for bit."""
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def files_of(folder: Path) -> dict[Path, bytes]:
    """Return every file below a folder and what it holds."""
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
