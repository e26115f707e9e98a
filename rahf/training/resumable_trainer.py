"""A training that may be killed at any time: checkpoints that are whole or not there, and SIGTERM.

Knows transformers' Trainer and stands above any of its kind; knows no method and no adapter.
"""

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from rahf.distributed.sigterm import StopOnSigterm, handling_sigterm
from rahf.overrides import overrides
from rahf.training.checkpoints import damage, newest_first, write_manifest
from rahf.training.cost import Clock

STAGING = "unfinished"

logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """Trainer whose run goes on with `train(resume_from_checkpoint=last_checkpoint())`.

    Given as the first base, it stands before another library's trainer.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._stop_on_sigterm = StopOnSigterm()
        self._clock = Clock()
        self.add_callback(self._stop_on_sigterm)
        self.add_callback(self._clock)

    @overrides(Trainer)
    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Train; a SIGTERM ends the process with status 0, after a checkpoint.

        `train_runtime` are the seconds of all starts up to the checkpoints that were gone on from.
        """
        newest = resume_from_checkpoint is True
        self._clock.go_on_from(self.last_checkpoint() if newest else resume_from_checkpoint)
        with handling_sigterm(self._stop_on_sigterm.notice):
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        if self._stop_on_sigterm.stopped:
            if self.is_world_process_zero():
                print(
                    f"stopped by SIGTERM after step {self.state.global_step}; the same command "
                    f"continues from {self.last_checkpoint()}",
                    file=sys.stderr,
                )
            raise SystemExit(0)
        return result

    @overrides(Trainer)
    def log(self, logs, *args, **kwargs):
        if "train_runtime" in logs:  # in place: these are the figures that `train` returns
            logs["train_runtime"] += self._clock.before
        super().log(logs, *args, **kwargs)

    @overrides(Trainer)
    def _run_epoch(self, *args, **kwargs):
        # A run killed after its last checkpoint is complete; the Trainer would make one step more
        # before it looks.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def last_checkpoint(self) -> str | None:
        """Folder of the newest whole checkpoint of this run, if there is one.

        A damaged one is passed over with a warning, and stays where it is.
        """
        for folder in newest_first(Path(self.args.output_dir)):
            damaged = damage(folder)
            if damaged is None:
                return str(folder)
            logger.warning("%s is passed over: %s", folder, damaged)
        return None

    # All is written into a staging folder and renamed: what is called checkpoint-N is whole.

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
        if self.args.should_save:
            self._clock.keep(final / STAGING / name)
            write_manifest(final / STAGING / name)
            shutil.rmtree(final / name, ignore_errors=True)
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
        def create_model_card(self, *args, **kwargs):
            pass  # the library's, written with each checkpoint

    return Resumable
