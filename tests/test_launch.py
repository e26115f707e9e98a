"""The command line and accelerate's launcher start the same job."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_pipeline import recipe_file  # noqa: F401

ROOT = Path(__file__).parent.parent


def run(*command: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def launched(config: str, *arguments: str) -> str:
    return run(
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(ROOT / "accelerate_configs" / config)),
        str(ROOT / "scripts" / "align.py"),
        *arguments,
    )


@pytest.mark.slow
def test_the_launcher_gives_the_adapter_that_the_command_gives(recipe_file):  # noqa: F811
    run(sys.executable, "-m", "rahf", "align", str(recipe_file), "--output_dir", "by_command")
    launched("single.yaml", "--config", str(recipe_file), "--output_dir", "by_launcher")
    first, second = (
        Path(folder, "adapter_model.safetensors").read_bytes()
        for folder in ("by_command", "by_launcher")
    )
    assert first == second
