"""One command on several ranks: `rahf align RECIPE --accelerate_config NAME`.

Starts accelerate's launcher inside this process, passes a SIGTERM to the ranks, and reports once
why a job ended. Knows processes; knows no recipe.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils.other import get_free_port
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
    get_error_handler,
)

from rahf.distributed.accelerate import names_port

LAUNCHED = "RAHF_LAUNCHED"
"""Environment variable of ranks whose error the launcher prints."""

GOES_ON = "The same command resumes from the last checkpoint."


def launch(config: Path, processes: int | None, arguments: Sequence[str]) -> int:
    """Run `rahf ARGUMENTS` on every rank of an accelerate configuration; returns the exit status.

    Args:
        processes: in place of the configuration's own number.

    Raises:
        ValueError: this process is a rank already; DeepSpeed is requested and not installed.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(
            "--accelerate_config starts the ranks, but this process is one: a launcher has started "
            "it. Omit --accelerate_config, or start without accelerate launch or torchrun."
        )
    given = ["--config_file", str(config), "--module"]
    given += ["--num_processes", str(processes)] if processes else []
    given += ["--main_process_port", str(port)] if (port := port_of(config)) else []
    options = launch_command_parser().parse_args([*given, "rahf", *arguments])
    # SIGTERM belongs to us: torch's launcher would kill the ranks half a minute later.
    options.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"
    terminated = []
    before = signal.signal(signal.SIGTERM, lambda *_: terminated.append(_hand_on_sigterm()))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ[LAUNCHED] = "1"
    try:
        launch_command(options)
    except ChildFailedError as error:
        if not terminated:
            return _report(list(error.failures.values()))
        print(f"stopped by SIGTERM before the step was done. {GOES_ON}", file=sys.stderr)
    except SignalException as error:
        return 0 if error.sigval == signal.SIGTERM else 128 + error.sigval
    except ImportError as error:
        raise ValueError(f'{config}: {error}; pip install "rahf[deepspeed]"') from None
    finally:
        del os.environ[LAUNCHED]
        signal.signal(signal.SIGTERM, before)
    return 0


def port_of(config: Path) -> int | None:
    """Return a free port where the ranks meet, so that several jobs can run on one machine.

    None where the configuration sets it.
    """
    return None if names_port(config) else get_free_port()


def _hand_on_sigterm() -> bool:
    """Send SIGTERM to every rank; return True."""
    for rank in psutil.Process().children():
        rank.send_signal(signal.SIGTERM)
    return True


def _report(failures: Sequence[ProcessFailure]) -> int:
    """Print the failure that the others followed from; returns the exit status."""
    # A rank that was killed is the cause; the others report a lost connection, often earlier.
    killed = [one for one in failures if one.exitcode < 0 and one.exitcode != -signal.SIGTERM]
    first = min(killed or failures, key=lambda failure: failure.timestamp)
    where = f"rank {first.local_rank}"
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        cause = " (often: no memory left on the machine)" if name == "SIGKILL" else ""
        print(f"error: {where} was killed by {name}{cause}. {GOES_ON}", file=sys.stderr)
        return 1
    ending = _ending_of(first)
    if first.exitcode != 2 and "py_callstack" in ending:
        print(ending["py_callstack"], file=sys.stderr)
    print(f"error: {where}: {ending['message']}", file=sys.stderr)
    return first.exitcode


def _ending_of(failure: ProcessFailure) -> dict[str, Any]:
    """Return what a rank has written about its end: message, and the place in the program."""
    message = (failure.error_file_data or {}).get("message", {})
    if not isinstance(message, dict):
        return {"message": failure.message}
    return {"message": message.get("message", failure.message), **message.get("extraInfo", {})}


def leave_to_launcher(error: Exception) -> bool:
    """Leave `error` for the launcher to print; False where no launcher would."""
    if LAUNCHED not in os.environ:
        return False
    get_error_handler().record_exception(error)
    return True
