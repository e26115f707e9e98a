import json
import shutil
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_dataset
from tiny_runs import (
    KillAfter,
    KilledError,
    alignment_trainer,
    assert_same_weights,
    files_of,
    largest_difference,
    policy_weights,
)

from rahf.data.rows import row_count
from rahf.recipe.fields import OptionError
from rahf.training.state_files import checksum_in, save_states
from rahf.training.target_cache import digest_of_rows, weights_of
from rahf.views import FrozenViews

RETAINED = [[3, 4, 5, 6], [7, 8], [9, 10, 11]]
STATES = 4 * 2  # files: four pairs, both responses


def run(family, folder, cache=None, **options):
    """Run six steps of four responses, three epochs over four pairs; count the frozen passes."""
    settings = {"per_device_train_batch_size": 4, "save_strategy": "no", "response_source": "both"}
    settings |= options
    if cache is not None:
        settings["target_cache"] = str(cache)
    trainer = alignment_trainer(family, folder, **settings)
    with frozen_passes() as passes:
        trainer.train()
    return trainer, len(passes)


@contextmanager
def frozen_passes():
    """Record the view and the rows of each pass of a frozen view that is run inside the context."""
    passes, read_view = [], FrozenViews.read_view

    def watched(views, view, batch, **how):
        passes.append((view, row_count(batch[view.rows])))
        return read_view(views, view, batch, **how)

    with patch.object(FrozenViews, "read_view", watched):
        yield passes


def files_in(cache):
    return sorted(cache.rglob("*.safetensors"))


def losses_of(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(
    ("method", "options", "views"),
    [
        ("dual", {}, 3),
        ("dual", {"reference": "positive"}, 2),
        ("scit", {"reference": "contrast", "positions": "response"}, 3),
        ("lorra", {"sft_weight": 2.0, "retain_weight": 0.5, "retain_texts": RETAINED}, 3),
        ("dual", {"shift": "mean", "sft_weight": 1.0, "retain_texts": RETAINED}, 1),
        ("scit", {"packing": False, "layer_scale": "rms"}, 3),
        ("scit", {"pairs_together": True, "max_response_tokens": 2}, 3),
        ("dual", {"bf16": True}, 3),
        ("dpo_shift", {}, 2),
        ("rmu", {"layer_scale": "none", "retain_weight": 0.5, "retain_texts": RETAINED}, 1),
    ],
)
def test_a_training_from_the_cache_is_the_training_without_it(
    family, tmp_path, method, options, views
):
    plain, asked = run(family, tmp_path / "plain", method=method, **options)
    cached, filling = run(family, tmp_path / "cached", tmp_path / "cache", method=method, **options)
    # In 16 bits another batch rounds otherwise, and a shift is a small difference.
    rounding = 0.02 if "bf16" in options else 1e-5
    assert losses_of(cached) == pytest.approx(losses_of(plain), rel=rounding)
    assert largest_difference(policy_weights(cached), policy_weights(plain)) < 10 * rounding
    # Two batches an epoch. Those of the first epoch are computed, and one of the second to compare;
    # retained texts, which are three, may meet other responses there and make it some more.
    assert asked == 6 * views
    assert 3 * views <= filling < asked


def test_retained_texts_are_computed_once_and_beside_no_response(family, tmp_path):
    options = {"retain_texts": RETAINED, "retain_weight": 0.5, "method": "lorra", "sft_weight": 1.0}
    options |= {"target_cache": str(tmp_path / "cache")}
    trainer = alignment_trainer(family, tmp_path / "out", pairs=9, **options)
    asked = []

    def compute(batch):
        asked.append(row_count(batch["reference"]))
        return trainer.alignment.read_views(batch)

    texts, compute_texts = [], FrozenViews.retained

    def watched(views, rows):
        texts.append(row_count(rows))
        return compute_texts(views, rows)

    with patch.object(FrozenViews, "retained", watched):
        for start in (0, 3, 6):  # three responses, each with one of the three texts
            items = [trainer.train_dataset[index] for index in range(start, start + 3)]
            batch = trainer.data_collator(items)
            found = trainer.target_cache.read_or_compute(batch, compute)
            whole = trainer.alignment.read_views(batch)
            assert torch.allclose(found.reference, whole.reference, atol=1e-5)
            assert torch.allclose(found.shift, whole.shift, atol=1e-5)
    assert (texts, asked) == ([3], [3, 3, 3])


@pytest.mark.parametrize(
    "options",
    [
        {"kl_weight": 1.0, "response_source": "random"},
        {"dpo_weight": 1.0, "pairs_together": True, "shift": "mean"},
        {"kl_weight": 1.0, "sft_weight": 1.0, "packing": False},
    ],
    ids=str,
)
def test_beside_a_term_that_reads_predictions_retained_texts_alone_are_kept(
    family, tmp_path, options
):
    def trained(folder, **more):
        options_of_run = {"retain_texts": RETAINED, "retain_weight": 0.5, **options, **more}
        options_of_run |= {"per_device_train_batch_size": 4, "save_strategy": "no"}
        trainer = alignment_trainer(family, tmp_path / folder, **options_of_run)
        with frozen_passes() as passes:
            trainer.train()
        reference = trainer.alignment.frozen_views.views.reference
        return trainer, [rows for view, rows in passes if view == reference]

    plain, whole = trained("plain")
    cached, first = trained("cached", target_cache=str(tmp_path / "cache"))
    again, later = trained("again", target_cache=str(tmp_path / "cache"))
    for each in (cached, again):
        assert losses_of(each)[0] == pytest.approx(losses_of(plain)[0], rel=1e-6)
        # Texts that are computed in another pack are rounded otherwise; training carries it on.
        assert losses_of(each) == pytest.approx(losses_of(plain), rel=1e-4)
    assert whole == [8] * 6  # four responses, each with a text
    assert first == [3, *[4] * 6]  # the three texts, then responses alone
    assert later == [8, *[4] * 5]  # once more, to compare
    assert [path.parent.name for path in files_in(tmp_path / "cache")] == ["retained"] * 3


def test_retained_states_of_other_weights_are_refused(family, tmp_path):
    options = {"retain_texts": RETAINED, "retain_weight": 0.5, "pairs": 9}
    options |= {"target_cache": str(tmp_path / "cache")}
    trainer, other = (
        alignment_trainer(family, tmp_path / name, **options) for name in ("one", "other")
    )

    def batch_from(start):
        return trainer.data_collator([trainer.train_dataset[start + each] for each in range(3)])

    trainer.target_cache.read_or_compute(batch_from(0), trainer.alignment.read_views)
    paths = sorted((tmp_path / "cache").rglob("retained/*.safetensors"))
    for path in paths:
        save_states({"reference": 2 * load_file(path)["reference"]}, path)
    paths[0].unlink()  # a training that was killed has left some of them
    with pytest.raises(ValueError, match="of other weights"):
        other.target_cache.read_or_compute(batch_from(3), other.alignment.read_views)


def test_later_trainings_with_another_alpha_rate_and_seed_run_no_view_but_to_compare(
    family, tmp_path
):
    run(family, tmp_path / "first", tmp_path / "cache")
    before = files_of(tmp_path / "cache")
    options = {"alpha": -3.0, "learning_rate": 5e-3, "seed": 8}
    cached, asked = run(family, tmp_path / "second", tmp_path / "cache", **options)
    plain, _ = run(family, tmp_path / "plain", **options)
    assert asked == 3  # the three views, for the first batch
    assert files_of(tmp_path / "cache") == before
    assert losses_of(cached) == pytest.approx(losses_of(plain), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"target_layers": [1, 2]},
        {"max_response_tokens": 2},
        {"positions": "response"},
        {"tail_tokens": 1},
        {"reference": "positive"},
        {"method": "scit"},
        {"method": "lorra"},
        {"response_source": "chosen"},
        {"shift": "mean"},
        {"pairs": 5},
        {"bf16": True},
        {"retain_weight": 0.5, "retain_texts": RETAINED},
    ],
    ids=str,
)
def test_whatever_changes_the_states_has_a_folder_of_its_own(family, tmp_path, options):
    run(family, tmp_path / "first", tmp_path / "cache", max_steps=1)
    _, asked = run(family, tmp_path / "second", tmp_path / "cache", max_steps=1, **options)
    assert asked > 0
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_teachers_trained_anew_have_a_folder_of_their_own(family, tmp_path):
    run(family, tmp_path / "first", tmp_path / "cache", max_steps=1)
    teachers = {}
    for name in ("positive", "negative"):
        teachers[name] = shutil.copytree(family.adapters[name], tmp_path / name)
    weights = tmp_path / "positive" / "adapter_model.safetensors"
    save_file({name: 2 * part for name, part in load_file(weights).items()}, weights)
    run(family, tmp_path / "second", tmp_path / "cache", max_steps=1, teachers=teachers)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_teachers_are_distinguished_wherever_they_are(family, tmp_path):
    copied = shutil.copytree(family.adapters["positive"], tmp_path / "copied")
    assert weights_of(copied) == weights_of(str(family.adapters["positive"]))
    assert weights_of(copied) != weights_of(family.adapters["negative"])
    assert weights_of("someone/one") != weights_of("someone/other")  # names of the Hub
    base = shutil.copytree(family.base, tmp_path / "base")
    before = weights_of(base)
    [weights] = base.glob("*.safetensors")
    save_file({name: 2 * part for name, part in load_file(weights).items()}, weights)
    assert weights_of(base) != before


def test_other_pairs_have_a_folder_of_their_own(family, tmp_path, monkeypatch):
    run(family, tmp_path / "first", tmp_path / "cache", max_steps=1)
    monkeypatch.setattr("tiny_runs.tiny_dataset", lambda pairs: tiny_dataset(pairs, seed=9))
    run(family, tmp_path / "second", tmp_path / "cache", max_steps=1)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_weights_that_were_changed_in_memory_are_refused(family, tmp_path):
    run(family, tmp_path / "first", tmp_path / "cache")
    base = family.load_base()
    with torch.no_grad():
        base.model.layers[0].mlp.down_proj.weight.mul_(1.1)
    with pytest.raises(ValueError, match=r"of other weights\. Delete that folder"):
        run(family, tmp_path / "second", tmp_path / "cache", base=base)


def test_a_shift_of_other_teachers_is_refused(family, tmp_path):
    run(family, tmp_path / "first", tmp_path / "cache")
    for path in files_in(tmp_path / "cache"):
        states = load_file(path)
        save_states({**states, "shift": -states["shift"]}, path)
    with pytest.raises(ValueError, match="more than rounding makes"):
        run(family, tmp_path / "second", tmp_path / "cache")


@pytest.mark.parametrize("damage", [lambda whole: whole[:-9], lambda whole: b""])
def test_a_damaged_file_is_named(family, tmp_path, damage):
    run(family, tmp_path / "first", tmp_path / "cache")
    for path in files_in(tmp_path / "cache"):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"safetensors cannot be read .*: delete"):
        run(family, tmp_path / "second", tmp_path / "cache")


@pytest.mark.parametrize("keeps_checksum", [False, True])
def test_states_whose_values_were_altered_are_noticed_wherever_they_are_read(
    family, tmp_path, keeps_checksum
):
    run(family, tmp_path / "first", tmp_path / "cache")
    path = files_in(tmp_path / "cache")[-1]  # not only what is compared to the model
    states = load_file(path)
    kept = {"checksum": checksum_in(path)} if keeps_checksum else None
    states["shift"][0, 0, 0] += 1e-3  # less than what rounding may make
    save_file(states, path, kept)
    with pytest.raises(ValueError, match="is damaged: its checksum does not match"):
        run(family, tmp_path / "second", tmp_path / "cache", max_steps=2)


def test_states_of_another_number_of_tokens_are_refused(family, tmp_path):
    run(family, tmp_path / "first", tmp_path / "cache")
    for path in files_in(tmp_path / "cache"):
        save_states({name: part[:, 1:].clone() for name, part in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"has the states of \d+ tokens, and \d+ are aligned"):
        run(family, tmp_path / "second", tmp_path / "cache")


def test_a_record_that_is_not_that_of_its_folder_is_refused(family, tmp_path):
    run(family, tmp_path / "first", tmp_path / "cache", max_steps=1)
    [record] = (tmp_path / "cache").glob("*/key.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "layers": [0, 1]}))
    with pytest.raises(ValueError, match="is not the record that its folder is named by"):
        run(family, tmp_path / "second", tmp_path / "cache")


def test_a_killed_training_goes_on_from_what_it_kept(family, tmp_path):
    whole, _ = run(family, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(
            family,
            tmp_path / "killed",
            tmp_path / "cache",
            save_strategy="steps",
            callbacks=[KillAfter(1)],
        )
    assert len(files_in(tmp_path / "cache")) == 4  # of the one batch
    resumed = alignment_trainer(
        family,
        tmp_path / "killed",
        per_device_train_batch_size=4,
        target_cache=str(tmp_path / "cache"),
    )
    resumed.train(resume_from_checkpoint=True)
    assert len(files_in(tmp_path / "cache")) == STATES
    assert largest_difference(policy_weights(resumed), policy_weights(whole)) < 1e-4


def test_held_out_pairs_neither_read_nor_fill_the_cache(family, tmp_path):
    cached, _ = run(family, tmp_path / "cached", tmp_path / "cache", eval_pairs=3)
    plain, _ = run(family, tmp_path / "plain", eval_pairs=3)
    assert cached.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-4)
    assert len(files_in(tmp_path / "cache")) == STATES


def test_more_than_the_disk_has_free_is_refused_before_anything_is_trained(
    family, tmp_path, monkeypatch
):
    free = SimpleNamespace(free=0)
    monkeypatch.setattr("rahf.training.target_cache.shutil.disk_usage", lambda folder: free)
    with pytest.raises(ValueError, match=r"has 0\.00 GiB free: give a folder on another") as caught:
        run(family, tmp_path / "out", tmp_path / "cache")
    assert "target_cache: the states of this training take" in str(caught.value)
    assert not files_in(tmp_path / "cache")
    free.free = 2**30
    run(family, tmp_path / "first", tmp_path / "cache")
    # What is there already is not counted twice.
    free.free = round(0.01 * sum(path.stat().st_size for path in files_in(tmp_path / "cache")))
    run(family, tmp_path / "again", tmp_path / "cache")
    with pytest.raises(ValueError, match="target_cache: the states of this training take"):
        run(family, tmp_path / "other", tmp_path / "cache", target_layers=[1])


def test_the_room_that_is_asked_for_is_what_the_states_take(family, tmp_path, monkeypatch):
    asked = {}

    def note(folder, missing):
        asked["bytes"] = missing

    monkeypatch.setattr("rahf.training.target_cache._check_room", note)
    run(family, tmp_path / "out", tmp_path / "cache", method="scit", response_source="chosen")
    tensors = [part for path in files_in(tmp_path / "cache") for part in load_file(path).values()]
    taken = sum(part.numel() * part.element_size() for part in tensors)
    assert taken <= asked["bytes"] <= 1.2 * taken  # prompts shorter than the tail take less


def test_a_full_disk_ends_the_keeping_and_not_the_training(family, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("rahf.training.state_files.save_file", full)
    plain, _ = run(family, tmp_path / "plain")
    cached, asked = run(family, tmp_path / "cached", tmp_path / "cache")
    assert_same_weights(policy_weights(cached), policy_weights(plain))
    assert asked == 6 * 3
    assert caplog.text.count("No space left on device") == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"target_cache": " "}, "is empty: give a folder"),
        ({"response_source": "random"}, "may never draw a response again"),
        ({"kl_weight": 0.1}, "beside kl_weight, which reads predictions of the responses"),
        (
            {"dpo_weight": 0.1, "pairs_together": True},
            "set retain_weight above 0, or dpo_weight to",
        ),
        ({"kl_weight": 0.1, "kl_rows": "retain", "retain_weight": 0.5}, "with kl_rows: retain"),
    ],
)
def test_what_the_cache_cannot_hold_is_refused(family, tmp_path, options, told):
    with pytest.raises(OptionError, match=told):
        alignment_trainer(family, tmp_path, **{"target_cache": str(tmp_path / "cache"), **options})


def test_the_digest_of_rows_distinguishes_ids_and_the_borders_between_them():
    rows = tiny_dataset(3).map(lambda row: {"chosen_ids": [1, 2], "rejected_ids": [3]})
    moved = rows.map(lambda row: {"chosen_ids": [1], "rejected_ids": [2, 3]})
    assert digest_of_rows(rows) == digest_of_rows(rows.select(range(3)))
    assert digest_of_rows(rows) != digest_of_rows(moved)
    assert digest_of_rows(rows) != digest_of_rows(rows.select([1, 0, 2]).map(lambda row: {}))


def test_a_rank_that_has_its_batch_computes_it_where_another_does_not(
    family, tmp_path, monkeypatch
):
    run(family, tmp_path / "first", tmp_path / "cache")
    trainer = alignment_trainer(family, tmp_path / "out", target_cache=str(tmp_path / "cache"))
    batch = trainer.data_collator([trainer.train_dataset[index] for index in (0, 5)])
    asked, made = [], trainer.alignment.read_views(batch)

    def compute(_):
        asked.append(1)
        return made

    trainer.target_cache.read_or_compute(batch, compute)  # compares
    known = trainer.target_cache.read_or_compute(batch, compute)
    assert len(asked) == 1
    assert torch.allclose(known.reference, made.reference, atol=1e-5)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flag, operation: flag.zero_())
    assert trainer.target_cache.read_or_compute(batch, compute) is made
    assert len(asked) == 2
