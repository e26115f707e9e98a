"""The command line and accelerate's launcher start the same job."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_pipeline import recipe_file  # noqa: F401

ROOT = Path(__file__).parent.parent


def run(*command: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def launched(config: str, script: str, *arguments: str) -> str:
    return run(
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(ROOT / "accelerate_configs" / config)),
        str(ROOT / script),
        *arguments,
    )


@pytest.mark.slow
def test_the_launcher_gives_the_adapter_that_the_command_gives(recipe_file):  # noqa: F811
    run(sys.executable, "-m", "rahf", "align", str(recipe_file), "--output_dir", "by_command")
    launched(
        *("single.yaml", "scripts/align.py", "--config", str(recipe_file)),
        *("--output_dir", "by_launcher"),
    )
    first, second = (
        Path(folder, "adapter_model.safetensors").read_bytes()
        for folder in ("by_command", "by_launcher")
    )
    assert first == second


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("shift", ["token", "mean"])
def test_two_ranks_give_the_adapter_of_one_process(recipe_file, shift):  # noqa: F811
    # Plain gradient descent: Adam would blow rounding in a gradient near zero up to a whole step.
    options = ("--shift", shift, "--max_steps", "2", "--optim", "sgd", "--learning_rate", "0.1")
    run(
        *(sys.executable, "-m", "rahf", "align", str(recipe_file), *options),
        *("--output_dir", "one", "--per_device_train_batch_size", "6"),
    )
    told = launched(
        *("ddp_cpu.yaml", "tests/distributed/align_and_tell.py", str(recipe_file), *options),
        *("--output_dir", "two", "--per_device_train_batch_size", "3"),
    )
    assert "engine MULTI_CPU world 2" in told
    for folder in ("teachers/positive", "teachers/negative", "."):
        one, two = (
            load_file(Path(name, folder, "adapter_model.safetensors")) for name in ("one", "two")
        )
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-6)
