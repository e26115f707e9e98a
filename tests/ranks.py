"""Processes that tests start: one, or several ranks."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=800)
    of_ranks = [line for line in done.stderr.splitlines() if line.startswith("[rank")]
    assert done.returncode == 0, "\n".join(of_ranks) or done.stderr[-3000:]
    return done.stdout


def launched(config: str, script: str, *arguments: str) -> str:
    return run(
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(ROOT / "accelerate_configs" / config), "--main_process_port", "0"),
        str(ROOT / script),
        *arguments,
    )
