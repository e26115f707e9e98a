"""Several ranks, under every engine, do what one process does; a job that is ended goes on."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from ranks import ENVIRONMENT, launched, run
from safetensors.torch import load_file
from tiny_models import D_MODEL
from tiny_recipes import WORDS, write_lines

from rahf.artifacts import read_lines
from rahf.cli import main
from rahf.directions.vectors import Directions
from rahf.distributed.launching import port_of

ROOT = Path(__file__).parents[2]
ENGINES = {
    "ddp": ("DistributedDataParallel", "Parameter"),
    "zero2": ("DeepSpeedEngine", "Parameter"),
    "zero3": ("DeepSpeedEngine", "Parameter"),
    "fsdp2": ("DistributedDataParallel", "DTensor"),
}
"""What wraps the model, and what a frozen weight is."""


@pytest.fixture
def uneven_recipe(family, tmp_path, monkeypatch) -> Path:
    """Write a DUAL recipe on eight pairs with responses of 1 to 7 tokens; nothing is evaluated."""
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
    texts = [{"text": " ".join(WORDS[index : index + 9])} for index in range(3)]
    write_lines(tmp_path / "texts.jsonl", texts)
    Directions((0, 1, 2), torch.arange(3 * D_MODEL).view(3, -1).float()).save(tmp_path / "kept")
    recipe = {
        "method": "dual",
        "model_name_or_path": str(family.base),
        "dataset_name": "pairs",
        "dataset_test_split": None,
        "test_share": 0,
        "output_dir": "out",
        "target_layers": "1-2",
        "lora_r": 3,
        "shift": "token",
        "retain_weight": 0.0,
        "alpha": 2.0,
        "dpo_weight": 0.0,
        "pairs_together": False,
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


SCIT = ("--method", "scit", "--shift", "mean")
COMPARED = ("--kl_weight", "0.5")
RETAINING = (
    *("--method", "lorra", "--shift", "mean", "--retain_weight", "0.5", "--retain_rows", "3"),
    *("--retain_dataset_name", "texts.jsonl", "--retain_tokens", "5"),
)
PROTECTED = ("--protect", "[kept]", "--protect_weight", "3.0")
CHECKPOINTING = ("--activation_checkpointing", "true")  # teachers take it over
UPPER = ("--lora_first_layer", "1")  # block 0 is a trunk that all views share
SOLVED = ("--alpha", "auto", "--shift", "mean", "--kl_budget", "1e-5", "--learning_rate", "2e-2")
WHOLE_BATCH = ("--max_steps", "1", "--teachers.max_steps", "1", "--response_source", "chosen")


def align(recipe: Path, output: str, *options: str) -> list[str]:
    return ["align", str(recipe), "--output_dir", output, *options]


def adapters_of(folder: str) -> dict[str, Path]:
    """Return the adapters of a run by place, those of checkpoints and teachers among them."""
    found = Path(folder).rglob("adapter_model.safetensors")
    return {str(path.parent.relative_to(folder)): path for path in found}


def losses(folder: str) -> list[float]:
    return [line["loss"] for line in read_lines(Path(folder, "log.jsonl")) if "loss" in line]


def assert_same_run(one: str, other: str, places=None, rtol=1e-4, atol=2e-6) -> None:
    """Compare every adapter and every loss of two runs."""
    first, second = adapters_of(one), adapters_of(other)
    assert first.keys() == second.keys()
    for place in places or first:
        weights, others = load_file(first[place]), load_file(second[place])
        assert weights.keys() == others.keys()
        for key in weights:
            torch.testing.assert_close(others[key], weights[key], rtol=rtol, atol=atol)
    torch.testing.assert_close(losses(other), losses(one), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_launcher_gives_the_adapter_that_the_command_gives(recipe_file):
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
@pytest.mark.timeout(900)  # DeepSpeed compiles a part of itself on its first run on a machine
@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_give_the_losses_and_adapters_of_one_process(family, uneven_recipe, engine):
    half = ("--per_device_train_batch_size", "4")
    full_teacher = ("--teachers.negative", str(family.base), *COMPARED)
    rest = ("--per_device_train_batch_size",)  # of six, which neither 8 pairs nor 16 responses fill
    for command in (
        align(uneven_recipe, "dual"),
        align(uneven_recipe, "scit", *SCIT),
        align(uneven_recipe, "whole", *WHOLE_BATCH),
        align(uneven_recipe, "full", *full_teacher),
        align(uneven_recipe, "rest", *rest, "6"),
        align(uneven_recipe, "scit_rest", *SCIT, *COMPARED, *PROTECTED, *rest, "6"),
        align(uneven_recipe, "solved", *SOLVED),
        align(uneven_recipe, "upper", *UPPER),
        align(uneven_recipe, "retaining", *RETAINING, *rest, "4"),
    ):
        assert main(command) == 0
    # What is left of `dual` after two of its steps is to be finished by the ranks.
    killed_at_two("dual", "from_one")
    cases = [
        align(uneven_recipe, "dual_2", *half),
        align(uneven_recipe, "scit_2", *SCIT, *half),
        align(uneven_recipe, "dual_recomputed_2", *CHECKPOINTING, *half),
        align(uneven_recipe, "scit_recomputed_2", *SCIT, *CHECKPOINTING, *half),
        align(uneven_recipe, "whole_2", *WHOLE_BATCH, *half),
        align(uneven_recipe, "sorted_2", *WHOLE_BATCH, *half, "--dataset_name", "sorted"),
        align(uneven_recipe, "full_2", *full_teacher, *half),
        align(uneven_recipe, "from_one", "--stage", "alignment", *half),
        align(uneven_recipe, "rest_2", *rest, "3"),
        align(uneven_recipe, "scit_rest_2", *SCIT, *COMPARED, *PROTECTED, *rest, "3"),
        align(uneven_recipe, "solved_2", *SOLVED, *half),
        align(uneven_recipe, "upper_2", *UPPER, *half),
        align(uneven_recipe, "upper_recomputed_2", *UPPER, *CHECKPOINTING, *half),
        align(uneven_recipe, "keeping_2", "--target_cache", "states", *half),
        align(uneven_recipe, "cached_2", "--target_cache", "states", *half),
        align(uneven_recipe, "retaining_2", *RETAINING, "--target_cache", "held", *rest, "2"),
    ]
    Path("cases.json").write_text(json.dumps(cases))
    launched(f"{engine}_cpu.yaml", "tests/distributed/run_cases.py", "cases.json")

    assert_engine(engine)
    assert_same_run("dual", "dual_2")
    assert_same_run("scit", "scit_2")
    assert_same_run("dual", "dual_recomputed_2")
    assert_same_run("scit", "scit_recomputed_2")
    assert_same_run("whole", "whole_2")
    assert_same_run("whole_2", "sorted_2")
    assert_same_run("full", "full_2")
    assert_same_run("rest", "rest_2")
    assert_same_run("scit_rest", "scit_rest_2")
    assert_same_run("solved", "solved_2", rtol=1e-3)
    assert_same_run("upper", "upper_2")
    assert_same_run("upper", "upper_recomputed_2")
    assert_same_run("dual", "keeping_2")
    assert_same_run("dual", "cached_2")
    assert_same_run("retaining", "retaining_2")
    assert len(list(Path("states").rglob("*.safetensors"))) == 16
    assert_kept_to_its_budget("solved_2")
    assert_same_run("dual", "from_one", places=["."])
    # ... and what the ranks left, by one process.
    killed_at_two("dual_2", "from_two")
    assert main(align(uneven_recipe, "from_two", "--stage", "alignment")) == 0
    assert_same_run("dual", "from_two", places=["."])
    assert_policy_stands_there_once("dual_2")


def assert_kept_to_its_budget(folder: str) -> None:
    """Check that the saved adapter is the last checkpoint's, scaled back."""
    metrics = json.loads(Path(folder, "metrics.json").read_text())
    assert 0 < metrics["choice/strength"] < 0.99
    trained, saved = (
        load_file(Path(folder, place, "adapter_model.safetensors"))
        for place in ("checkpoint-4", ".")
    )
    for key, weight in trained.items():
        factor = metrics["choice/strength"] if ".lora_B." in key else 1.0
        torch.testing.assert_close(saved[key], factor * weight)


def killed_at_two(source: str, target: str) -> None:
    """Return a copy of a run as it is when its alignment is killed after two steps."""
    shutil.copytree(source, target)
    for path in Path(target).iterdir():
        if path.is_file() or path.name in ("checkpoint-4", "evaluation"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert Path(target, "checkpoint-2").is_dir()


def assert_engine(engine: str) -> None:
    wrapper, base = ENGINES[engine]
    told = json.loads(Path("engines.json").read_text())
    assert len(told) == 3 + 2 + 3 + 2 + 3 + 3 + 2 + 1 + 3 + 2 + 3 + 3 + 3 + 3 + 3 + 1
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


# Jobs that are ended from outside

LONG = (
    *("--teachers.max_steps", "1", "--max_steps", "80", "--save_steps", "4"),
    *("--learning_rate", "1e-5", "--teachers.learning_rate", "1e-3"),
)
"""Enough steps to be in the middle of them when the signal comes, and too small ones to come near
the target, where Adam would blow up what two ranks round otherwise.
"""

TWO_RANKS = ("--accelerate_config", "ddp_cpu", "--per_device_train_batch_size", "4")


class Job:
    """`rahf align` in a process of its own."""

    def __init__(self, recipe: Path, output: str, *options: str):
        command = (sys.executable, "-m", "rahf", *align(recipe, output, *options))
        self.output = Path(output)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def wait_for_checkpoint(self) -> None:
        """Wait until the alignment, which continues, has written its first checkpoint."""
        deadline = time.monotonic() + 120
        while not any(self.output.glob("checkpoint-*")):
            assert self.process.poll() is None, self.process.stderr.read()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ranks(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "rahf" in child.cmdline()]

    def end(self) -> tuple[int, str]:
        """Exit status, and what was written to stderr after the progress of loading."""
        _, told = self.process.communicate(timeout=120)
        return self.process.returncode, told


def last_step(output: str) -> int:
    return max(int(path.name[11:]) for path in Path(output).glob("checkpoint-*"))


def assert_goes_on_as_if_never_stopped(recipe: Path) -> None:
    """Resume the run in `stopped` in one process; compare it with one that was never stopped."""
    assert 0 < last_step("stopped") < 80
    assert main(align(recipe, "stopped", *LONG)) == 0
    assert main(align(recipe, "whole", *LONG)) == 0
    assert losses("stopped") == pytest.approx(losses("whole"), rel=1e-4)
    ends = [load_file(Path(name, "adapter_model.safetensors")) for name in ("whole", "stopped")]
    for key, weights in ends[0].items():
        torch.testing.assert_close(ends[1][key], weights, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(), TWO_RANKS])
def test_sigterm_saves_and_exits_with_0_so_that_the_run_can_go_on(uneven_recipe, ranks):
    job = Job(uneven_recipe, "stopped", *LONG, *ranks)
    job.wait_for_checkpoint()
    job.process.send_signal(signal.SIGTERM)
    status, told = job.end()
    assert status == 0, told[-3000:]
    step = last_step("stopped")
    assert told.count("stopped by SIGTERM") == 1
    assert f"after step {step}; the same command resumes from stopped/checkpoint-{step}" in told
    assert not Path("stopped/adapter_model.safetensors").exists()
    assert_goes_on_as_if_never_stopped(uneven_recipe)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("killed", ["one", "all"])
def test_a_rank_that_dies_ends_the_job_with_one_message_and_the_run_goes_on(uneven_recipe, killed):
    job = Job(uneven_recipe, "stopped", *LONG, *TWO_RANKS)
    job.wait_for_checkpoint()
    for rank in job.ranks()[: 1 if killed == "one" else 2]:
        rank.kill()
    status, told = job.end()
    assert status == 1
    errors = [line for line in told.splitlines() if "error" in line.lower()]
    assert errors == [line for line in errors if "was killed by SIGKILL" in line]
    assert len(errors) == 1
    assert "The same command resumes from the last checkpoint." in errors[0]
    assert_goes_on_as_if_never_stopped(uneven_recipe)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_second_job_on_the_machine_meets_at_another_port(uneven_recipe):
    with socket.socket() as first:
        with contextlib.suppress(OSError):  # taken by a job of somebody else: as good
            first.bind(("127.0.0.1", 29500))
            first.listen()
        status, told = Job(uneven_recipe, "out", *TWO_RANKS, "--stage", "positive").end()
    assert status == 0, told[-3000:]
    assert "already in use" not in told  # accelerate's warning; two starts at once would collide
    assert Path("out/teachers/positive/adapter_model.safetensors").exists()


@pytest.mark.parametrize("given", [{"main_process_port": 29501}, {"num_machines": 2}])
def test_a_port_that_is_named_or_that_machines_agree_on_is_left_alone(tmp_path, given):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"num_processes": 2, **given}))
    assert port_of(tmp_path / "own.yaml") is None
    assert port_of(ROOT / "accelerate_configs/ddp.yaml") > 0


@pytest.mark.slow
@pytest.mark.distributed
def test_what_is_wrong_with_a_run_is_reported_once_whatever_the_number_of_ranks(uneven_recipe):
    job = Job(uneven_recipe, "out", *TWO_RANKS, "--stage", "alignment")
    status, told = job.end()
    assert status == 2
    assert told.count("stage 'alignment' needs 'positive'") == 1
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.distributed
def test_held_out_figures_of_two_ranks_are_those_of_one_process(recipe_file):
    options = ("--save_strategy", "no", "--output_dir")
    command = ("-m", "rahf", "align", str(recipe_file), "--per_device_train_batch_size")
    run(sys.executable, *command, "4", *options, "one")
    ranks = ("--accelerate_config", str(ROOT / "accelerate_configs/ddp_cpu.yaml"))
    run(sys.executable, *command, "2", *options, "two", *ranks)
    one, two = (
        {
            name: value
            for name, value in json.loads(Path(folder, "metrics.json").read_text()).items()
            if name.startswith(("eval_loss", "eval_repr", "eval_preference"))
        }
        for folder in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert two == pytest.approx(one, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_that_would_train_the_same_thing_twice_are_refused(recipe_file):
    recipe = yaml.safe_load(recipe_file.read_text())
    del recipe["use_cpu"]
    recipe_file.write_text(yaml.safe_dump(recipe))
    config = str(ROOT / "accelerate_configs/ddp_cpu.yaml")
    command = ("-m", "rahf", "align", str(recipe_file), "--accelerate_config", config)
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("2 processes were launched, but each of them runs alone") == 1
    assert not list(Path("out").rglob("*.safetensors"))
