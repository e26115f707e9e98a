"""A training that may be killed at any time: checkpoints that are complete or absent, and SIGTERM.

Knows transformers' Trainer and extends any of its kind; knows no method and no adapter.
"""

import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from rahf.distributed.sharding import check_world
from rahf.distributed.sigterm import StopOnSigterm, handling_sigterm
from rahf.overrides import overrides
from rahf.training.checkpoints import damage, make_way, newest_first, write_manifest
from rahf.training.cost import Clock

STAGING = "unfinished"

logger = logging.getLogger(__name__)


class NonFiniteError(ValueError):
    """Training met a loss, a weight or a figure that is inf or nan; checkpoints are kept."""


def check_finite_weights(weights: Mapping[str, Tensor], step: int) -> None:
    """Refuse to save non-finite weights over a good checkpoint."""
    if not all(torch.isfinite(weight).all() for weight in weights.values()):
        raise NonFiniteError(
            f"the adapter's weights became inf or nan in step {step}; nothing was saved. Earlier "
            "checkpoints are kept: lower the learning rate or alpha and start again from one."
        )


def check_finite_figures(figures: Mapping[str, Any]) -> None:
    """Refuse figures of a training that are inf or nan."""
    bad = {name: value for name, value in figures.items() if not isfinite(value)}
    if bad:
        raise NonFiniteError(
            f"{', '.join(f'{name} is {value}' for name, value in bad.items())}: the model's scores "
            "are not finite. Lower the learning rate, or train in float32 or bfloat16."
        )


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of `model` that are trained, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


class ResumableTrainer(Trainer):
    """Trainer whose run is resumed by `train(resume_from_checkpoint=last_checkpoint())`.

    Given as the first base, it precedes another library's trainer.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_world(self.accelerator.state, engine_chosen=True)
        self._stop_on_sigterm = StopOnSigterm()
        self._clock = Clock()
        self.add_callback(self._stop_on_sigterm)
        self.add_callback(self._clock)

    @overrides(Trainer)
    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Train; a SIGTERM ends the process with status 0, after a checkpoint.

        `train_runtime` and `train_loss` cover all starts, up to the checkpoints resumed from.
        """
        newest = resume_from_checkpoint is True
        self._clock.go_on_from(self.last_checkpoint() if newest else resume_from_checkpoint)
        with handling_sigterm(self._stop_on_sigterm.notice):
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        if self._stop_on_sigterm.stopped:
            if self.is_world_process_zero():
                print(
                    f"stopped by SIGTERM after step {self.state.global_step}; the same command "
                    f"resumes from {self.last_checkpoint()}",
                    file=sys.stderr,
                )
            raise SystemExit(0)
        return result

    @overrides(Trainer)
    def log(self, logs, *args, **kwargs):
        if "train_runtime" in logs:  # in place: these are the figures that `train` returns
            logs["train_runtime"] += self._clock.before
        if "train_loss" in logs and self._clock.loss_before:  # transformers counts this start only
            loss = self._clock.loss_before + self._total_loss_scalar
            logs["train_loss"] = loss / self.state.global_step
        super().log(logs, *args, **kwargs)

    @overrides(Trainer)
    def _run_epoch(self, *args, **kwargs):
        # A run killed after its last checkpoint is complete; the Trainer would make one step more
        # before it looks.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def last_checkpoint(self) -> str | None:
        """Return the folder of the newest complete checkpoint of this run, if there is one.

        A damaged one is passed over with a warning, and stays where it is.
        """
        for folder in newest_first(Path(self.args.output_dir)):
            damaged = damage(folder)
            if damaged is None:
                return str(folder)
            logger.warning("%s is passed over: %s", folder, damaged)
        return None

    # All is written into a staging folder and renamed: what is called checkpoint-N is complete.

    @overrides(Trainer)
    def _get_output_dir(self, trial):
        folder = Path(super()._get_output_dir(trial))
        return str(folder / STAGING if self._staging else folder)

    _staging = False

    @overrides(Trainer)
    def _save_checkpoint(self, model, trial):
        final = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        with self._staged(final / STAGING):
            super()._save_checkpoint(model, trial)
        if self.state.best_model_checkpoint == str(final / STAGING / name):
            self.state.best_model_checkpoint = str(final / name)
            if self.args.should_save:
                self.state.save_to_json(str(final / STAGING / name / TRAINER_STATE_NAME))
        self.accelerator.wait_for_everyone()
        pending = self.accelerator.reduce(self._tr_loss.clone(), reduction="mean").item()
        if self.args.should_save:
            self._clock.keep(final / STAGING / name, self._total_loss_scalar + pending)
            write_manifest(final / STAGING / name)
            make_way(final / name)
            (final / STAGING / name).replace(final / name)
            (final / STAGING).rmdir()
            rotate_checkpoints(
                output_dir=str(final),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _staged(self, folder: Path) -> Iterator[None]:
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        self._staging = True
        try:
            yield
        finally:
            self._staging = False


def resumable(library_trainer: type[Trainer]) -> type[Trainer]:
    """Return another library's trainer whose run may be stopped and resumed; it writes no card."""

    class Resumable(ResumableTrainer, library_trainer):
        @overrides(library_trainer)
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            if not torch.isfinite(loss):
                kept = self.last_checkpoint() or "none: no checkpoint had been saved yet"
                raise NonFiniteError(
                    f"the loss is {loss.item()} in step {self.state.global_step + 1}; the last "
                    f"good checkpoint is {kept}. Lower learning_rate, or look at the pairs."
                )
            return loss

        @overrides(library_trainer)
        def _save(self, *args, **kwargs):
            check_finite_weights(trained_weights(self.model), self.state.global_step)
            super()._save(*args, **kwargs)

        @overrides(library_trainer)
        def create_model_card(self, *args, **kwargs):
            pass  # the library's, written with each checkpoint

    return Resumable
