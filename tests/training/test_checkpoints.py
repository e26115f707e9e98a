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


def test_a_folder_of_another_name_or_a_file_is_no_checkpoint(tmp_path):
    others = ("best", "", "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT THREE}", "-1", "+1", "1_0")
    for name in ("2", "10", *others):
        (tmp_path / f"checkpoint-{name}").mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    assert [path.name for path in newest_first(tmp_path)] == ["checkpoint-10", "checkpoint-2"]


def test_a_file_with_the_name_of_a_checkpoint_stops_no_resume(family, tmp_path):
    killed_after(family, tmp_path, 2)
    (tmp_path / "checkpoint-\N{SUPERSCRIPT TWO}").mkdir()
    (tmp_path / "checkpoint-5").write_text("a user's own")
    trainer = alignment_trainer(family, tmp_path)
    trainer.train(resume_from_checkpoint=trainer.last_checkpoint())
    assert [path.name for path in newest_first(tmp_path)][:2] == ["checkpoint-6", "checkpoint-5"]
    assert (tmp_path / "checkpoint-5.kept").read_text() == "a user's own"


@pytest.mark.parametrize("logging_steps", [1, 4])
@pytest.mark.parametrize("steps", [3, 6])
def test_the_loss_of_a_resumed_training_is_the_mean_over_all_its_steps(
    family, tmp_path, steps, logging_steps
):
    whole = alignment_trainer(family, tmp_path / "whole", logging_steps=logging_steps)
    expected = whole.train().metrics["train_loss"]
    if steps < 6:
        killed_after(family, tmp_path / "killed", steps, logging_steps=logging_steps)
    else:  # killed after the last checkpoint
        alignment_trainer(family, tmp_path / "killed", logging_steps=logging_steps).train()
    again = alignment_trainer(family, tmp_path / "killed", logging_steps=logging_steps)
    resumed = again.train(resume_from_checkpoint=again.last_checkpoint()).metrics["train_loss"]
    assert resumed == pytest.approx(expected, rel=1e-5)
    assert again.state.log_history[-1]["train_loss"] == resumed


@pytest.mark.parametrize("text", ["[]", "3", "{", "null", "\x00"])
def test_a_manifest_of_another_shape_is_damage(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    assert "is damaged" in damage(tmp_path)


def test_an_intact_folder_has_no_damage(tmp_path):
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
