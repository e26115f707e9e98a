"""What a stage costs a machine: seconds of training over all of its starts, peak memory.

Knows clocks and allocators; knows no stage, no model and no method.
"""

import ctypes
import gc
import os
import platform
from pathlib import Path
from time import perf_counter

import torch
from transformers import TrainerCallback

from rahf.artifacts import read_object, write_json
from rahf.overrides import overrides

CLOCK_FILE = "clock.json"
FORGET_PEAK = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


class Clock(TrainerCallback):
    """Count seconds and loss of a training, with those that a checkpoint holds of earlier starts.

    Steps that were lost, since no checkpoint followed them, count nowhere: they are no cost of the
    method.
    """

    def __init__(self):
        self.before = 0.0
        self.loss_before: float | None = 0.0  # sum over the steps; None where it is not known
        self._started = perf_counter()

    def go_on_from(self, checkpoint: str | Path | None) -> None:
        """Count what is kept in `checkpoint`, which may be older than these clocks."""
        path = Path(checkpoint, CLOCK_FILE) if checkpoint else None
        kept = read_object(path) if path and path.exists() else {}
        self.before = kept.get("seconds", 0.0)
        self.loss_before = kept.get("loss") if checkpoint else 0.0

    @overrides(TrainerCallback)
    def on_train_begin(self, args, state, control, **kwargs):
        self._started = perf_counter()

    def keep(self, checkpoint: Path, loss: float) -> None:
        """Write both into `checkpoint`; `loss` is the sum over the steps of this start."""
        known = None if self.loss_before is None else self.loss_before + loss
        seconds = self.before + perf_counter() - self._started
        write_json(checkpoint / CLOCK_FILE, {"seconds": seconds, "loss": known})


class PeakMemory:
    """Measure the most memory that this process holds from now on, above what it holds now.

    On a GPU it is what torch's allocator has handed out; on a CPU under Linux the process's
    resident memory, where files that are read as memory count as well. Models that were loaded
    before are not in it. The process has one such mark: a second one takes the first one's place.
    """

    def __init__(self, device: torch.device):
        gc.collect()  # a trainer and its model hold each other
        self._device = device
        self._held = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._held = torch.cuda.memory_allocated(device)
        elif self._on_linux():
            give_back_freed()
            FORGET_PEAK.write_text("5")  # Linux: the peak of the resident memory is set to its size
            self._held = resident_bytes("VmRSS")

    def so_far(self) -> int | None:
        """Return the bytes; None where the system does not report them."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._held
        return resident_bytes("VmHWM") - self._held if self._on_linux() else None

    def _on_linux(self) -> bool:
        return self._device.type == "cpu" and os.access(FORGET_PEAK, os.W_OK)


def give_back_freed() -> None:
    """Return to the system what glibc has kept of freed memory, which would be reused unseen."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(name: str) -> int:
    """Return the bytes of this process by a name of /proc/self/status."""
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])
