"""One variant in one process: seconds of its steps, peak memory, counted FLOPs.

Memory on a CPU is the peak of the resident memory above what the process held once everything was
imported; on a GPU what its allocator had handed out at most. FLOPs are those that torch counts
(products of matrices, attention's full square), in a run of their own, since counting takes time.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from parts.ceiling import matrix_ceiling
from parts.flops import counting
from parts.variants import ON_A_GPU, VARIANTS
from parts.workload import Workload

from rahf.models.packed_attention import kernel_only_on


def measure(
    workload: Workload, variant: str, steps: int, warmup: int, clock: str
) -> dict[str, Any]:
    """Train `warmup` + `steps` steps; seconds of the last `steps`, losses, bytes."""
    import_everything(variant)
    seconds = clock_of(clock, workload.device)
    before, started = resident("VmRSS"), seconds()
    trained = (VARIANTS | ON_A_GPU)[variant](workload, warmup + steps, seconds)
    on_gpu = workload.device == "cuda"
    return {
        "seconds": differences(trained.ends)[warmup - 1 :],
        "losses": trained.losses,
        "until_first_step_ended": trained.ends[0] - started,
        "memory": torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM") - before,
        "process": resident("VmHWM"),
    }


def count(workload: Workload, variant: str, steps: int, warmup: int) -> dict[str, Any]:
    """Return the FLOPs a step, mean over the same steps.

    Packs are attended row by row: torch does not count into a kernel that it has compiled.
    """
    with kernel_only_on(), counting() as counter:
        trained = VARIANTS[variant](workload, warmup + steps, counter.get_total_flops)
    return {"flops": sum(differences(trained.ends)[warmup - 1 :]) / steps}


def ceiling(workload: Workload, size: int) -> dict[str, Any]:
    """Return the rate of matrix products on the workload's device, and what the device is."""
    on_gpu = workload.device == "cuda"
    dtype = getattr(torch, workload.dtype)
    found = matrix_ceiling(workload.device, dtype, seconds_on(workload.device), size)
    return {
        "flops_per_second": found,
        "name": torch.cuda.get_device_name() if on_gpu else "CPU",
        "memory": torch.cuda.get_device_properties(0).total_memory if on_gpu else None,
    }


def write_weights(workload: Workload, folder: str) -> dict[str, Any]:
    """Write the drawn weights of a shape as a model that can be loaded."""
    workload.load_model().save_pretrained(folder)
    return {"folder": folder}


def import_everything(variant: str) -> None:
    """Import what a variant will, so that no module counts as its memory."""
    import rahf.trainer

    assert rahf.trainer.RAHFTrainer
    if variant == "dpo":
        import trl

        assert trl.DPOTrainer


def clock_of(name: str, device: str) -> Callable[[], float]:
    """Return a clock: `cpu` is the time that this process has computed, `wall` the time that has
    passed.
    """
    return time.process_time if name == "cpu" else seconds_on(device)


def seconds_on(device: str) -> Callable[[], float]:
    """Return a clock that waits until the device has finished its queued work."""

    def seconds() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return seconds


def differences(values: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(values)]


def resident(name: str) -> int:
    """Return the bytes of this process under a name of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


def in_new_process(
    function: str,
    workload: Workload,
    *,
    launcher: Sequence[str] = (sys.executable,),
    limit: float | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Return what a worker (see `work`) returns, called in a process of its own.

    Args:
        launcher: what runs a script.
        limit: seconds after which the process is stopped.

    Raises:
        RuntimeError: the worker has failed; the message ends with its stderr.
        subprocess.TimeoutExpired: it took longer than `limit`.
    """
    given = json.dumps({"workload": workload.as_dict(), **arguments})
    command = [*launcher, sys.argv[0], "--worker", function, given]
    environment = dict(os.environ)
    if arguments.get("clock") == "cpu":
        # A waiting thread that spins takes time from others, and counts as work. Where time that
        # passes is measured it spins as it does for users: waking it costs more than a small step.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    status, output, errors = run_alone(command, environment, limit)
    if status:
        raise RuntimeError(f"{function}({given}) failed:\n{errors}")
    # Launchers and engines print as well.
    return json.loads([line for line in output.splitlines() if line.startswith("{")][-1])


def run_alone(
    command: Sequence[str], environment: dict[str, str], limit: float | None
) -> tuple[int, str, str]:
    """Return status, stdout and stderr of a command.

    At its limit it is stopped with all processes that it has started: a launcher's would go on.
    """
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output, errors


def work(function: str, given: str) -> None:
    """Run the other side of `in_new_process`: the last printed line is the result."""
    arguments = json.loads(given)
    workload = Workload.from_dict(arguments.pop("workload"))
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        result = WORKERS[function](workload, **arguments)
    print(json.dumps(result), flush=True)


WORKERS = {"measure": measure, "count": count, "ceiling": ceiling, "write_weights": write_weights}
