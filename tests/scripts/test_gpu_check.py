"""The check of a GPU works: on a CPU at toy size, with failures and a budget that ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import gpu_check
from parts import gpu
from parts.checks import Check, LeftOutError, Outcome, reason_of, run_checks
from parts.gpu_table import table
from parts.measure import run_alone

ROOT = Path(__file__).parents[2]
TOY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
SMALL = ["--pairs", "1", "--steps", "1", "--warmup", "1", "--lengths", "0.1", "--device", "cpu"]
SMALL += ["--ceiling_size", "64"]


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(TOY))
    return path


def test_a_check_that_fails_or_does_not_fit_ends_no_other():
    now = [0.0]

    def taking(seconds, result):
        def run(left):
            now[0] += seconds
            if isinstance(result, Exception):
                raise result
            return {"left": left(), **result}

        return run

    checks = [
        Check("good", 10, taking(10, {"figure": 1})),
        Check("bad", 10, taking(5, RuntimeError("measure({}) failed:\nx\nValueError: no\n"))),
        Check("slow", 90, taking(90, {})),
        Check("absent", 10, taking(1, LeftOutError("there is no GPU"))),
        Check("stopped", 10, taking(20, subprocess.TimeoutExpired("python", 84))),
        Check("last", 10, taking(10, {})),
    ]
    told = []
    found = run_checks(checks, 100, lambda: now[0], told.append)
    assert [(x.status, x.reason) for x in found] == [
        ("done", ""),
        ("failed", "ValueError: no"),
        ("left out", "85 s of the budget are left, it may take 90"),
        ("left out", "there is no GPU"),
        ("left out", "stopped: the budget was over"),
        ("done", ""),
    ]
    assert found[0].figures == {"left": 90, "figure": 1}
    assert [x.seconds for x in found] == [10, 5, 0, 1, 20, 10]
    assert len(told) == len(checks)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "failed:\n[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried\n"
            "subprocess.CalledProcessError: Command '['python']' returned 1",
            "torch.OutOfMemoryError: CUDA out of memory. Tried",
        ),
        ("failed:\nModuleNotFoundError: No module named 'trl'", "ModuleNotFoundError: No module"),
        ("no more lines", "RuntimeError: no more lines"),
    ],
)
def test_the_reason_is_the_error_that_the_process_named(text, reason):
    assert reason_of(RuntimeError(text)).startswith(reason)


def test_a_process_is_stopped_with_those_that_it_has_started(tmp_path):
    mark = tmp_path / "mark"
    inner = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with pytest.raises(subprocess.TimeoutExpired):
        run_alone([sys.executable, "-c", outer], {}, 1)
    with pytest.raises(subprocess.TimeoutExpired):
        run_alone([sys.executable, "-c", "import time; time.sleep(9)"], {}, 4)
    assert not mark.exists()


def test_the_table_has_a_row_for_each_check_and_the_reasons_below():
    figures = {"seconds_per_step": 0.5, "needed_flops": 2e12, "peak_bytes": 2**31}
    outcomes = [
        Outcome("1B rahf", "done", figures=figures | {"last_loss": 1.25}, seconds=31),
        Outcome("1B naive", "done", figures=figures | {"seconds_per_step": 2.0}, seconds=40),
        Outcome("1B rahf, rows of one length", "done", figures=figures | {"planned_bytes": 2**32}),
        Outcome("1B rahf, 4 bits", "failed", "ValueError: no"),
        Outcome("tests that need a GPU", "done", figures={"tests": "2 passed in 9 s"}),
    ]
    text = table(outcomes, {"flops_per_second": 1e13, "name": "card", "memory": 2**33})
    assert text.startswith("card of 8 GiB; ceiling (bfloat16 matrix products): 10 TFLOP/s")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert rows[2] == "| 1B rahf | 0.500 | 1.00 | 2 | 40% | 2.00 |  | 1.2500 | 31 |"
    assert rows[3] == "| 1B naive | 2.000 | 4.00 | 2 | 10% | 2.00 |  |  | 40 |"
    assert rows[4].startswith("| 1B rahf, rows of one length | 0.500 |  | 2 | 40% | 2.00 | 4.00 |")
    assert rows[5].startswith("| 1B rahf, 4 bits | failed |")
    assert rows[6].startswith("| tests that need a GPU | 2 passed in 9 s |")
    assert text.splitlines()[-1] == "- 1B rahf, 4 bits: failed: ValueError: no"


def test_weights_that_the_card_does_not_hold_are_left_out(toy, tmp_path):
    options = gpu_check.parsed([*SMALL, "--output", str(tmp_path), "--shapes", str(toy)])
    bench = gpu_check.bench_of(options, toy, tmp_path)
    gpu.refuse_weights(bench, 4)  # what the card holds is not known
    bench.card = 1_000_000
    gpu.refuse_weights(bench, 1)
    with pytest.raises(LeftOutError, match="4 x the weights are 0 GiB, the card has 0"):
        gpu.refuse_weights(bench, 4)


def test_every_check_is_of_a_shape_that_is_there_and_both_sizes_are_timed():
    options = gpu_check.parsed(["--device", "cpu"])
    shapes = gpu_check.shapes_of(options)
    assert all(path.is_file() for path in shapes.values())
    benches = {
        name: gpu_check.bench_of(options, path, Path("work")) for name, path in shapes.items()
    }
    names = [check.name for check in gpu_check.checks_of(benches)]
    assert len(set(names)) == len(names)
    for name in ("1B naive", "1B rahf", "1B dpo", "7B naive", "7B rahf", "7B dpo"):
        assert name in names


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_checks_run_on_a_cpu_at_toy_size(toy, tmp_path):
    command = [sys.executable, str(ROOT / "scripts/gpu_check.py"), *SMALL, "--shapes", str(toy)]
    chosen = ["toy rahf-padded", "length", "bits", "fsdp2", "tests"]
    command += ["--output", str(tmp_path / "out"), "--budget", "3000", "--only", *chosen]
    status, output, errors = run_alone(command, {**os.environ, "PYTHONPATH": str(ROOT)}, 800)
    assert status == 1, errors  # 4 bits cannot be trained on a CPU
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    by_name = {check["name"]: check for check in found["checks"]}
    padded, full = by_name["toy rahf-padded"], by_name["toy rahf, rows of one length"]
    sharded, small = by_name["toy rahf, fsdp2, one rank"], by_name["toy rahf, 4 bits"]
    assert [check["status"] for check in (padded, full, sharded)] == ["done"] * 3
    assert padded["figures"]["last_loss"] == pytest.approx(
        sharded["figures"]["last_loss"], rel=0.05
    )
    assert full["figures"]["planned_bytes"] > 0
    assert full["figures"]["last_loss"] > 0
    assert small["status"] == "failed"
    assert "needs an accelerator" in small["reason"]
    assert by_name["tests that need a GPU"]["reason"] == "there is no GPU"
    assert (tmp_path / "out" / "gpu_check.md").read_text().strip() in output
