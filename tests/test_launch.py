"""Several ranks, under every engine, do what one process does; a job that is ended goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_pipeline import WORDS, recipe_file, write_lines  # noqa: F401

from rahf.artifacts import read_lines
from rahf.cli import main

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ENGINES = {
    "ddp": ("DistributedDataParallel", "Parameter"),
    "zero2": ("DeepSpeedEngine", "Parameter"),
    "zero3": ("DeepSpeedEngine", "Parameter"),
    "fsdp2": ("DistributedDataParallel", "DTensor"),
}
"""What wraps the model, and what a frozen weight is."""


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)
    of_ranks = [line for line in done.stderr.splitlines() if line.startswith("[rank")]
    assert done.returncode == 0, "\n".join(of_ranks) or done.stderr[-3000:]
    return done.stdout


def launched(config: str, script: str, *arguments: str) -> str:
    return run(
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(ROOT / "accelerate_configs" / config)),
        str(ROOT / script),
        *arguments,
    )


@pytest.fixture
def uneven_recipe(family, tmp_path, monkeypatch) -> Path:
    """A DUAL recipe on eight pairs whose responses have 1 to 7 tokens; nothing is evaluated."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pairs = [
        {
            "prompt": f"{WORDS[index]} {WORDS[index + 1]}",
            "chosen": " ".join(WORDS[index : index + 1 + index * 3 % 7]),
            "rejected": " ".join(WORDS[index + 7 : index + 8 + index * 5 % 4]),
        }
        for index in range(8)
    ]
    write_lines(tmp_path / "pairs/train.jsonl", pairs)
    # The same pairs, the short ones first: the ranks get other shares of the same global batch.
    by_length = sorted(pairs, key=lambda pair: len(pair["chosen"]))
    write_lines(tmp_path / "sorted/train.jsonl", by_length)
    recipe = {
        "method": "dual",
        "model_name_or_path": str(family.base),
        "dataset_name": "pairs",
        "dataset_test_split": None,
        "output_dir": "out",
        "target_layers": "1-2",
        "lora_r": 3,
        "shift": "token",
        "instructions": {"positive": "w2 w3", "negative": "w4 w5"},
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 8,
        "disable_tqdm": True,
        "use_cpu": True,
        "teachers": {"max_steps": 2},
        "evaluation": {"models": ["policy"]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


SCIT = ("--method", "scit", "--shift", "mean", "--activation_checkpointing", "true")
WHOLE_BATCH = ("--max_steps", "1", "--teachers.max_steps", "1", "--response_source", "chosen")


def align(recipe: Path, output: str, *options: str) -> list[str]:
    return ["align", str(recipe), "--output_dir", output, *options]


def adapters_of(folder: str) -> dict[str, Path]:
    """The adapters of a run by place, those of checkpoints and teachers among them."""
    found = Path(folder).rglob("adapter_model.safetensors")
    return {str(path.parent.relative_to(folder)): path for path in found}


def losses(folder: str) -> list[float]:
    return [line["loss"] for line in read_lines(Path(folder, "log.jsonl")) if "loss" in line]


def assert_same_run(one: str, other: str, places=None, rtol=1e-4, atol=2e-6) -> None:
    """Every adapter and every loss of two runs agree."""
    first, second = adapters_of(one), adapters_of(other)
    assert first.keys() == second.keys()
    for place in places or first:
        weights, others = load_file(first[place]), load_file(second[place])
        assert weights.keys() == others.keys()
        for key in weights:
            torch.testing.assert_close(others[key], weights[key], rtol=rtol, atol=atol)
    torch.testing.assert_close(losses(other), losses(one), rtol=1e-5, atol=1e-6)


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
@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_give_the_losses_and_adapters_of_one_process(uneven_recipe, engine):
    half = ("--per_device_train_batch_size", "4")
    for command in (
        align(uneven_recipe, "dual"),
        align(uneven_recipe, "scit", *SCIT),
        align(uneven_recipe, "whole", *WHOLE_BATCH),
    ):
        assert main(command) == 0
    # What is left of `dual` after two of its steps is to be finished by the ranks.
    killed_at_two("dual", "from_one")
    cases = [
        align(uneven_recipe, "dual_2", *half),
        align(uneven_recipe, "scit_2", *SCIT, *half),
        align(uneven_recipe, "whole_2", *WHOLE_BATCH, *half),
        align(uneven_recipe, "sorted_2", *WHOLE_BATCH, *half, "--dataset_name", "sorted"),
        align(uneven_recipe, "from_one", "--stage", "alignment", *half),
    ]
    Path("cases.json").write_text(json.dumps(cases))
    launched(f"{engine}_cpu.yaml", "tests/distributed/run_cases.py", "cases.json")

    assert_engine(engine)
    assert_same_run("dual", "dual_2")
    assert_same_run("scit", "scit_2")
    assert_same_run("whole", "whole_2")
    assert_same_run("whole_2", "sorted_2")
    assert_same_run("dual", "from_one", places=["."])
    # ... and what the ranks left, by one process.
    killed_at_two("dual_2", "from_two")
    assert main(align(uneven_recipe, "from_two", "--stage", "alignment")) == 0
    assert_same_run("dual", "from_two", places=["."])
    assert_policy_stands_there_once("dual_2")


def killed_at_two(source: str, target: str) -> None:
    """A copy of a run as it stands when its alignment is killed after two steps."""
    shutil.copytree(source, target)
    for path in Path(target).iterdir():
        if path.is_file() or path.name in ("checkpoint-4", "evaluation"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert Path(target, "checkpoint-2").is_dir()


def assert_engine(engine: str) -> None:
    wrapper, base = ENGINES[engine]
    told = json.loads(Path("engines.json").read_text())
    assert len(told) == 3 + 2 + 3 + 3 + 1
    for one in told:
        assert one["world"] == 2
        assert (one["wrapper"], one["base"]) == (wrapper, base)
        assert one["distributed_type"] == ("DEEPSPEED" if "zero" in engine else "MULTI_CPU")
        assert one["held"] == {"fsdp2": one["whole"] // 2, "zero3": 0}.get(engine, one["whole"])
        stage = {"zero2": "DeepSpeedZeroOptimizer", "zero3": "DeepSpeedZeroOptimizer_Stage3"}
        assert one["optimizer"] == stage.get(engine, "AdamW")


def assert_policy_stands_there_once(folder: str) -> None:
    for place in (Path(folder), Path(folder, "checkpoint-4")):
        kept = {path.name for path in place.iterdir() if path.is_file()}
        assert {name for name in kept if name.endswith((".safetensors", ".bin"))} == {
            "adapter_model.safetensors"
        }
        assert {name for name in kept if name.endswith(".pt")} <= {"optimizer.pt", "scheduler.pt"}
        tensors = load_file(place / "adapter_model.safetensors")
        assert all(tensor.numel() for tensor in tensors.values())
        assert all("lora_" in name for name in tensors)
        assert not [path for path in place.iterdir() if path.name.startswith("global_step")]
