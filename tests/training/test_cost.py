"""What a stage costs: seconds over all of its starts, memory at its fullest moment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_runs import KillAfter, KilledError, alignment_trainer

import rahf.training.cost
from rahf.artifacts import read_json, write_json
from rahf.pipeline.stages import run_recorded
from rahf.records.stage_record import StageRecord
from rahf.training.checkpoints import MANIFEST, write_manifest
from rahf.training.cost import CLOCK_FILE, Clock, PeakMemory

MIB = 2**20
CPU = torch.device("cpu")

on_linux = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the system tells no peak of memory"
)


def allocate(mib: int) -> None:
    """Fill a tensor and let it go."""
    torch.ones(mib * MIB // 4)


def about(mib: int):
    """Allow for resident pages, which Linux counts by the batch."""
    return pytest.approx(mib * MIB, abs=8 * MIB)


# Memory


@on_linux
def test_the_peak_is_what_was_held_at_once_above_what_was_held_before():
    kept = torch.ones(48 * MIB // 4)
    memory = PeakMemory(CPU)
    assert memory.so_far() == about(0)
    for mib in (64, 32, 64):  # one after the other
        allocate(mib)
    assert memory.so_far() == about(64)
    assert len(kept)


@on_linux
def test_memory_that_an_earlier_stage_has_used_counts_again():
    last = []
    for _ in range(3):
        memory = PeakMemory(CPU)
        blocks = [torch.ones(64 * 1024 // 4) for _ in range(512)]
        last.append(blocks[-1])  # the block above the freed ones keeps them in the process
        del blocks
        assert memory.so_far() == about(32)


@pytest.mark.gpu
def test_on_a_gpu_the_allocators_peak_counts():
    device = torch.device("cuda")
    kept = torch.ones(48 * MIB // 4, device=device)
    memory = PeakMemory(device)
    for mib in (64, 32):
        torch.ones(mib * MIB // 4, device=device)
    assert memory.so_far() == 64 * MIB
    assert len(kept)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_where_the_system_does_not_report_there_is_no_figure(monkeypatch, tmp_path, device):
    monkeypatch.setattr(rahf.training.cost, "FORGET_PEAK", Path("/proc/nowhere"))
    assert PeakMemory(torch.device(device)).so_far() is None
    record = StageRecord(tmp_path, {})
    run_recorded(record, "stage", lambda: {"loss": 1.0})
    made_with = {"settings": {}, "made_from": {}, "files": {}}
    assert read_json(tmp_path / "stage.json") == {"complete": True, "loss": 1.0, **made_with}


@on_linux
@pytest.mark.parametrize(("first", "then"), [(64, 16), (16, 64)])
def test_a_stage_that_was_stopped_keeps_the_largest_peak_of_its_starts(tmp_path, first, then):
    record = StageRecord(tmp_path, {"seed": 1})

    def stopped() -> dict:
        allocate(first)
        raise SystemExit(0)

    def whole() -> dict:
        allocate(then)
        return {"loss": 1.0}

    with pytest.raises(SystemExit):
        run_recorded(record, "stage", stopped)
    assert record.begun()["peak_memory"] == about(first)
    assert not record.is_complete()
    run_recorded(record, "stage", whole)
    found = read_json(tmp_path / "stage.json")
    assert found["peak_memory"] == about(64)
    assert found["loss"] == 1.0


def test_a_stage_begun_with_other_settings_leaves_no_figure(tmp_path):
    StageRecord(tmp_path, {"seed": 1}).begin(peak_memory=10**15)
    assert StageRecord(tmp_path, {"seed": 1}).begun() == {"peak_memory": 10**15}
    assert StageRecord(tmp_path, {"seed": 2}).begun() == {}
    assert StageRecord(tmp_path / "new", {"seed": 2}).begun() == {}


# Seconds


@pytest.fixture
def killed(family, tmp_path) -> Path:
    """Return the checkpoint of a run that was switched off after its second step."""
    trainer = alignment_trainer(family, tmp_path, callbacks=[KillAfter(2)])
    with pytest.raises(KilledError):
        trainer.train()
    return tmp_path / "checkpoint-2"


@contextmanager
def changing(checkpoint: Path) -> Iterator[None]:
    """Yield files of a checkpoint, which is intact again afterwards."""
    (checkpoint / MANIFEST).unlink()
    yield
    write_manifest(checkpoint)


def seconds_in(checkpoint: Path) -> float:
    return read_json(checkpoint / CLOCK_FILE)["seconds"]


def test_the_seconds_of_a_run_that_went_on_are_those_of_all_its_starts(family, killed):
    folder = killed.parent
    assert 0 < seconds_in(folder / "checkpoint-1") < seconds_in(killed) < 100
    with changing(killed):
        write_json(killed / CLOCK_FILE, {"seconds": 1000.0})
    again = alignment_trainer(family, folder)
    figures = again.train(resume_from_checkpoint=again.last_checkpoint()).metrics
    assert 1000 < figures["train_runtime"] < 1100
    [told] = [line for line in again.state.log_history if "train_runtime" in line]
    assert told["train_runtime"] == figures["train_runtime"]
    assert 1000 < seconds_in(folder / "checkpoint-3") < seconds_in(folder / "checkpoint-6") < 1100
    # From the last checkpoint nothing is left to do.
    third = alignment_trainer(family, folder)
    figures = third.train(resume_from_checkpoint=True).metrics
    assert figures["train_runtime"] > seconds_in(folder / "checkpoint-6")


def test_a_checkpoint_of_before_these_clocks_is_gone_on_from(family, killed):
    with changing(killed):
        (killed / CLOCK_FILE).unlink()
    again = alignment_trainer(family, killed.parent)
    assert again.last_checkpoint() == str(killed)
    figures = again.train(resume_from_checkpoint=str(killed)).metrics
    assert 0 < figures["train_runtime"] < 100
    assert again.state.global_step == 6


def test_a_training_from_the_beginning_has_its_own_seconds_alone(tmp_path):
    write_json(tmp_path / CLOCK_FILE, {"seconds": 7.0})
    clock = Clock()
    clock.go_on_from(tmp_path)
    assert clock.before == 7
    clock.go_on_from(None)
    assert clock.before == 0
