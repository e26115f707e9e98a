"""Checkpoints: damaged ones are passed over, states survive, a full disk leaves what there was."""

import errno
import logging

import pytest
import torch
from tiny_runs import KillAfter, KilledError, alignment_trainer, assert_same_weights, policy_weights

from rahf.training.adapter_trainer import STAGING
from rahf.training.checkpoints import damage, newest_first, optimizer_state, restore, write_manifest


def killed_after(family, folder, steps, **options):
    trainer = alignment_trainer(family, folder, callbacks=[KillAfter(steps)], **options)
    with pytest.raises(KilledError):
        trainer.train()
    return trainer


DAMAGES = {
    "a file cut short": (
        lambda folder: cut(folder / "adapter_model.safetensors"),
        "adapter_model.safetensors is not what was written",
    ),
    "a bit turned": (
        lambda folder: turn_a_bit(folder / "optimizer.pt"),
        "optimizer.pt is not what was written",
    ),
    "a file missing": (
        lambda folder: (folder / "scheduler.pt").unlink(),
        "scheduler.pt is missing",
    ),
    "not written to its end": (
        lambda folder: (folder / "manifest.json").unlink(),
        "it has no manifest.json, so that it was not written to its end",
    ),
    "a manifest cut short": (
        lambda folder: cut(folder / "manifest.json"),
        "its manifest.json is damaged",
    ),
}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turn_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_the_one_before_is_used(
    family, tmp_path, caplog, name
):
    spoil, told = DAMAGES[name]
    whole = alignment_trainer(family, tmp_path / "whole")
    whole.train()
    killed_after(family, tmp_path / "run", 3)
    spoil(tmp_path / "run" / "checkpoint-3")
    trainer = alignment_trainer(family, tmp_path / "run")
    with caplog.at_level(logging.WARNING, "rahf.training.adapter_trainer"):
        checkpoint = trainer.last_checkpoint()
    assert checkpoint == str(tmp_path / "run" / "checkpoint-2")
    assert f"{tmp_path / 'run' / 'checkpoint-3'} is passed over: {told}" in caplog.text
    trainer.train(resume_from_checkpoint=checkpoint)
    assert_same_weights(policy_weights(trainer), policy_weights(whole))
    assert damage(tmp_path / "run" / "checkpoint-3") is None  # written anew


def test_a_run_whose_checkpoints_are_all_damaged_starts_from_the_beginning(family, tmp_path):
    trainer = killed_after(family, tmp_path, 2)
    for folder in newest_first(tmp_path):
        (folder / "optimizer.pt").write_bytes(b"")
    assert trainer.last_checkpoint() is None


def test_a_folder_of_another_name_is_no_checkpoint(tmp_path):
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-best", "checkpoint-"):
        (tmp_path / name).mkdir()
    assert [path.name for path in newest_first(tmp_path)] == ["checkpoint-10", "checkpoint-2"]


def test_a_whole_folder_has_no_damage(tmp_path):
    (tmp_path / "weights").write_bytes(b"1234")
    write_manifest(tmp_path)
    assert damage(tmp_path) is None


@pytest.mark.parametrize("broken", ["torch.save", "rahf.training.checkpoints.Path.write_text"])
def test_a_full_disk_leaves_the_checkpoints_there_were(family, tmp_path, monkeypatch, broken):
    trainer = killed_after(family, tmp_path, 2)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(broken, full)
        trainer = alignment_trainer(family, tmp_path)
        with pytest.raises(OSError, match="No space left on device"):
            trainer.train(resume_from_checkpoint=trainer.last_checkpoint())
    assert [path.name for path in newest_first(tmp_path)] == ["checkpoint-2", "checkpoint-1"]
    again = alignment_trainer(family, tmp_path)
    again.train(resume_from_checkpoint=again.last_checkpoint())
    assert newest_first(tmp_path)[0].name == "checkpoint-6"
    assert not (tmp_path / STAGING).exists()


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"])
def test_the_state_of_an_optimiser_goes_through_a_file_unchanged(family, tmp_path, optim):
    trainer = killed_after(family, tmp_path, 2, optim=optim)
    saved = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    own = optimizer_state(trainer.model, trainer.optimizer)
    assert saved["state"].keys() == own["state"].keys()
    for group in trainer.optimizer.param_groups:
        group["lr"] = 7.0
    trainer.optimizer.state.clear()
    restore(trainer.model, trainer.optimizer, tmp_path / "checkpoint-2", saved)
    again = optimizer_state(trainer.model, trainer.optimizer)
    for name, state in own["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(again["state"][name][key]), torch.as_tensor(value))
    assert again["groups"] == saved["groups"]


def test_parameters_do_not_share_their_count_of_steps(family, tmp_path):
    killed_after(family, tmp_path, 1)
    saved = torch.load(tmp_path / "checkpoint-1" / "optimizer.pt", weights_only=True)
    places = [state["step"].data_ptr() for state in saved["state"].values()]
    assert len(set(places)) == len(places) > 1
