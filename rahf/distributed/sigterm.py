"""SIGTERM, as schedulers send it before they take a machine away: save, then exit with status 0.

Knows signals and the Trainer's callbacks; what is saved is the trainer's business.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback

from rahf.overrides import overrides


@contextmanager
def handling_sigterm(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handle SIGTERM with `handler` inside the context. Outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(*_: object) -> None:
    """Exit: the handler between trainings, when nothing would be lost."""
    if PartialState().is_main_process:
        print("stopped by SIGTERM; the same command resumes where it stopped", file=sys.stderr)
    raise SystemExit(0)


class StopOnSigterm(TrainerCallback):
    """Ends the training with a checkpoint after the step in which any rank received the signal."""

    def __init__(self):
        self._noticed = False
        self.stopped = False

    def notice(self, signum: int, frame: object) -> None:
        """Note the signal: the handler during the training."""
        self._noticed = True

    @overrides(TrainerCallback)
    def on_step_end(self, args, state, control, **kwargs):
        noticed = torch.tensor(float(self._noticed), device=args.device)
        # The signal reaches the ranks at different times; they have to stop after the same step.
        if reduce(noticed, reduction="sum").item():
            self.stopped = control.should_save = control.should_training_stop = True
