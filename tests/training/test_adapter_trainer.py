import errno
import json
import math
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from safetensors.torch import load_file
from tiny_models import lora
from tiny_runs import (
    KillAfter,
    KilledError,
    alignment_trainer,
    assert_same_weights,
    files_of,
    largest_difference,
    policy_weights,
)
from torch.utils.data import BatchSampler
from transformers import TrainerCallback, set_seed

from rahf.training.adapter_trainer import STAGING, NonFiniteError, first_time
from rahf.training.checkpoints import write_manifest

RETAINED = [[3, 4, 5, 6], [7, 8], [9, 10, 11]]


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def resumed(family, folder, **options):
    """Return the weights of a run that resumes from `folder`."""
    trainer = alignment_trainer(family, folder, **options)
    trainer.train(resume_from_checkpoint=trainer.last_checkpoint())
    assert trainer.state.global_step == 6
    return policy_weights(trainer)


RUNS = {
    "both sides": {},
    "a random side, three epochs, retained texts": {
        "response_source": "random",
        "retain_texts": RETAINED,
        "retain_weight": 0.5,
    },
    "mean shift, dropout, a learning rate that changes": {
        "shift": "mean",
        "peft_config": lora(lora_dropout=0.3),
        "lr_scheduler_type": "linear",
        "warmup_steps": 2,
    },
    "two batches a step, starting as a copied teacher": {
        "gradient_accumulation_steps": 2,
        "reference": "positive",
        "pairs": 5,
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_at_any_step_and_resumed_ends_with_the_very_same_weights(
    family, tmp_path, name
):
    options = RUNS[name]
    trainer = alignment_trainer(family, tmp_path / "whole", **options)
    trainer.train()
    whole = policy_weights(trainer)
    for steps in range(1, 6):
        folder = tmp_path / f"killed after {steps}"
        killed = alignment_trainer(family, folder, callbacks=[KillAfter(steps)], **options)
        with pytest.raises(KilledError):
            killed.train()
        assert killed.last_checkpoint() == str(folder / f"checkpoint-{steps}")
        set_seed(12345)
        assert_same_weights(resumed(family, folder, **options), whole)


def test_steps_since_the_last_checkpoint_are_made_again(family, tmp_path):
    trainer = alignment_trainer(family, tmp_path / "whole", save_steps=2)
    trainer.train()
    whole = policy_weights(trainer)
    for steps, kept in ((1, []), (3, ["checkpoint-2"]), (5, ["checkpoint-2", "checkpoint-4"])):
        folder = tmp_path / str(steps)
        killed = alignment_trainer(family, folder, save_steps=2, callbacks=[KillAfter(steps)])
        with pytest.raises(KilledError):
            killed.train()
        assert checkpoints(folder) == kept
        assert_same_weights(resumed(family, folder, save_steps=2), whole)


def test_a_finished_run_is_not_trained_any_further(family, tmp_path):
    trainer = alignment_trainer(family, tmp_path)
    trainer.train()
    assert_same_weights(resumed(family, tmp_path), policy_weights(trainer))


def test_the_last_checkpoint_is_the_one_of_most_steps(family, tmp_path):
    trainer = alignment_trainer(family, tmp_path)
    assert trainer.last_checkpoint() is None
    for steps in (9, 10, 2):
        folder = tmp_path / f"checkpoint-{steps}"
        folder.mkdir()
        write_manifest(folder)
    assert trainer.last_checkpoint() == str(tmp_path / "checkpoint-10")


def accumulating(family, folder, batch, accumulated, **options):
    """Make a trainer of ten responses: the last step of an epoch has two.

    The optimiser is plain SGD: Adam would blow rounding up where a gradient is nearly zero.
    """
    return alignment_trainer(
        family,
        folder / f"{batch}x{accumulated}",
        pairs=5,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        optim="sgd",
        learning_rate=1.0,
        max_steps=3,
        save_strategy="no",
        **options,
    )


@pytest.mark.parametrize(
    "terms", [{}, {"retain_weight": 0.5, "sft_weight": 0.3, "retain_texts": RETAINED}]
)
def test_eight_batches_of_one_make_the_same_steps_as_one_batch_of_eight(family, tmp_path, terms):
    results = []
    for sizes in ((8, 1), (1, 8), (2, 4), (3, 3)):
        trainer = accumulating(family, tmp_path, *sizes, **terms)
        start = policy_weights(trainer)
        trainer.train()
        results.append((policy_weights(trainer), [line["loss"] for line in log_of(trainer)]))
    (whole, losses), *others = results
    assert largest_difference(start, whole) > 0.01
    for weights, other_losses in others[:2]:
        assert largest_difference(weights, whole) < 1e-4
        assert other_losses == pytest.approx(losses, abs=2e-4)
    # Nine a step is another run, so that the comparison above can tell runs apart.
    assert largest_difference(others[2][0], whole) > 1e-3


def test_pairs_under_a_dpo_term_make_the_same_steps_in_batches_of_any_even_size(family, tmp_path):
    results = []
    for sizes in ((8, 1), (2, 4), (4, 2)):
        trainer = accumulating(family, tmp_path, *sizes, pairs_together=True, dpo_weight=2.0)
        trainer.train()
        results.append(policy_weights(trainer))
    for weights in results[1:]:
        assert largest_difference(weights, results[0]) < 1e-4


def log_of(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def test_the_same_seed_gives_the_same_weights_whatever_ran_before(family, tmp_path):
    results = []
    for index in range(2):
        set_seed(index)
        trainer = alignment_trainer(family, tmp_path / str(index), response_source="random")
        trainer.train()
        results.append(policy_weights(trainer))
    assert_same_weights(*results)


def test_another_seed_gives_other_weights(family, tmp_path):
    results = []
    for seed in (3, 4):
        trainer = alignment_trainer(family, tmp_path / str(seed), seed=seed)
        trainer.train()
        results.append(policy_weights(trainer))
    assert largest_difference(*results) > 1e-3


class Spoil(TrainerCallback):
    """Makes the policy's weights nan at the start of the step after `steps`."""

    def __init__(self, steps, when="on_step_begin"):
        self._steps = steps
        setattr(self, when, self._spoil)

    def _spoil(self, args, state, control, model=None, **kwargs):
        if state.global_step == self._steps:
            for name, parameter in model.named_parameters():
                if ".default." in name:
                    parameter.data.fill_(math.nan)


def test_a_loss_that_is_no_number_stops_with_its_rows_and_keeps_the_last_good_checkpoint(
    family, tmp_path
):
    trainer = alignment_trainer(family, tmp_path, callbacks=[Spoil(3)])
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda items: (
        seen.append([item["row"] for item in items]) or collate(items)
    )
    with pytest.raises(NonFiniteError) as stopped:
        trainer.train()
    message = str(stopped.value)
    assert "the loss is nan in step 4" in message
    assert f"rows of the data set at fault: {seen[3]}" in message
    assert f"last good checkpoint is {tmp_path / 'checkpoint-3'}." in message
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    weights = load_file(tmp_path / "checkpoint-3" / "adapter_model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_of_a_batch_only_the_rows_at_fault_are_named(family, tmp_path, monkeypatch):
    trainer = alignment_trainer(family, tmp_path, save_strategy="no")
    item_loss = trainer.item_loss

    def second_row_is_infinite(model, batch):
        result = item_loss(model, batch)
        per_row = result.per_row.clone()
        per_row[1] = math.inf
        bad.append(batch["row"].tolist())
        return result._replace(per_row=per_row)

    bad = []
    monkeypatch.setattr(trainer, "item_loss", second_row_is_infinite)
    with pytest.raises(NonFiniteError) as stopped:
        trainer.train()
    assert f"the loss is inf in step 1; rows of the data set at fault: [{bad[0][1]}] " in str(
        stopped.value
    )
    assert f"(batch: {bad[0]}). No checkpoint had been saved yet." in str(stopped.value)


def test_weights_that_are_no_numbers_are_not_saved(family, tmp_path):
    trainer = alignment_trainer(family, tmp_path, callbacks=[Spoil(3, "on_step_end")])
    with pytest.raises(NonFiniteError, match="became inf or nan in step 3; nothing was saved"):
        trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_a_final_model_that_is_no_number_is_not_written_over_a_good_one(family, tmp_path):
    trainer = alignment_trainer(
        family, tmp_path, save_strategy="no", callbacks=[Spoil(6, "on_train_end")]
    )
    trainer.save_model()
    trainer.train()
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    with pytest.raises(NonFiniteError, match="became inf or nan"):
        trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("place", ["weights", "optimizer", "state"])
def test_a_full_disk_leaves_the_old_checkpoint_and_the_next_run_goes_on_from_it(
    family, tmp_path, monkeypatch, place
):
    trainer = alignment_trainer(family, tmp_path / "whole")
    trainer.train()
    whole = policy_weights(trainer)

    folder = tmp_path / "full"
    trainer = alignment_trainer(family, folder)

    def only_at_the_third_step(write):
        def wrapped(*args, **kwargs):
            if trainer.state.global_step == 3:
                staged = folder / STAGING / "checkpoint-3"
                staged.mkdir(parents=True, exist_ok=True)
                (staged / "half").write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patched:
        if place == "weights":
            import rahf.training.adapter_trainer

            patched.setattr(
                "rahf.training.adapter_trainer.save_policy",
                only_at_the_third_step(rahf.training.adapter_trainer.save_policy),
            )
        elif place == "optimizer":
            patched.setattr(torch, "save", only_at_the_third_step(torch.save))
        else:
            write = type(trainer.state).save_to_json
            patched.setattr(type(trainer.state), "save_to_json", only_at_the_third_step(write))
        with pytest.raises(OSError, match="No space left"):
            trainer.train()

    assert checkpoints(folder) == ["checkpoint-1", "checkpoint-2"]
    for step in (1, 2):
        kept, good = (tmp_path / name / f"checkpoint-{step}" for name in ("full", "whole"))
        assert files_of(kept).keys() == files_of(good).keys()
        name = Path("adapter_model.safetensors")
        assert files_of(kept)[name] == files_of(good)[name]
    again = alignment_trainer(family, folder)
    assert again.last_checkpoint() == str(folder / "checkpoint-2")
    assert_same_weights(resumed(family, folder), whole)
    assert not (folder / STAGING).exists()


def test_a_full_disk_leaves_the_old_model_at_the_root_whole(family, tmp_path, monkeypatch):
    trainer = alignment_trainer(family, tmp_path, save_strategy="no")
    trainer.save_model()
    before = files_of(tmp_path)
    trainer.train()

    def half(tensors, path, *args, **kwargs):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("peft.peft_model.safe_save_file", half)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_model()
    after = files_of(tmp_path)
    assert {name: after[name] for name in before} == before


def test_checkpoints_hold_the_policy_and_what_it_takes_to_go_on(family, tmp_path):
    trainer = alignment_trainer(family, tmp_path)
    trainer.train()
    folder = tmp_path / "checkpoint-6"
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "trainer_state.json"} <= names
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= names
    assert not {"training_args.bin", "README.md", "positive", "negative"} & names
    assert not any(path.is_dir() for path in folder.iterdir())


def test_only_the_wanted_number_of_checkpoints_is_kept(family, tmp_path):
    trainer = alignment_trainer(family, tmp_path, save_total_limit=2)
    trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-5", "checkpoint-6"]


def best_run(family, folder, **options):
    return alignment_trainer(
        family,
        folder,
        eval_pairs=2,
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        **options,
    )


def test_the_best_checkpoint_is_kept_and_loaded_at_the_end(family, tmp_path):
    # The learning rate makes the first steps better and the later ones worse than the best.
    trainer = best_run(family, tmp_path, learning_rate=1.0)
    start = policy_weights(trainer)
    trainer.train()
    losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    best = 1 + losses.index(min(losses))
    assert best < 6, losses
    folder = tmp_path / f"checkpoint-{best}"
    assert trainer.state.best_model_checkpoint == str(folder)
    assert checkpoints(tmp_path) == [f"checkpoint-{best}", "checkpoint-6"]
    for name in checkpoints(tmp_path):
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(folder)
    saved = load_file(folder / "adapter_model.safetensors")
    weights = policy_weights(trainer)
    for name, weight in weights.items():
        assert torch.equal(weight, saved[name.replace(".default.", ".")])
    assert largest_difference(start, weights) > 0


def test_the_best_checkpoint_is_remembered_by_a_run_that_goes_on(family, tmp_path):
    whole = best_run(family, tmp_path / "whole", learning_rate=1.0)
    whole.train()
    killed = best_run(family, tmp_path / "killed", learning_rate=1.0, callbacks=[KillAfter(4)])
    with pytest.raises(KilledError):
        killed.train()
    again = best_run(family, tmp_path / "killed", learning_rate=1.0)
    again.train(resume_from_checkpoint=again.last_checkpoint())
    best = Path(whole.state.best_model_checkpoint).name
    assert Path(again.state.best_model_checkpoint).name == best
    assert_same_weights(policy_weights(again), policy_weights(whole))


@pytest.mark.parametrize("examples", [1, 3, 8, 10, 12, 13])
@pytest.mark.parametrize(("world", "size"), [(2, 3), (2, 4), (3, 2), (4, 5)])
def test_over_all_ranks_every_example_counts_once_an_epoch(examples, world, size):
    batches = BatchSampler(range(examples), size, drop_last=False)
    counted = []
    for rank in range(world):
        for index, batch in enumerate(BatchSamplerShard(batches, world, rank)):
            counts = first_time(index * world + rank, len(batch), examples)
            counted += [example for example, once in zip(batch, counts, strict=True) if once]
    assert sorted(counted) == list(range(examples))
