"""The monitor's projections equal a plain loop, and reach the log of every trainer."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import D_MODEL, classifier, lora, randomize, tiny_model, tiny_tokenizer
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

import rahf
from rahf.directions.vectors import Directions
from rahf.evaluation.intervals import mean_estimate
from rahf.guards.projections import projections

ANSWERS = [
    {"prompt": f"w{n} w{n + 1}", "response": " ".join(f"w{k}" for k in range(n, n + 1 + n % 3))}
    for n in range(5, 17)
]
PAIRS = [
    {"prompt": f"w{n} ", "chosen": f"w{n + 1} w{n + 2}", "rejected": f"w{n + 3}"}
    for n in range(4, 20)
]


def directions(layers=(1, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Directions(layers, torch.randn(len(layers), D_MODEL, generator=generator))


def by_loop(model, given, ids):
    """One answer at a time, from the hidden states that transformers returns."""
    found = torch.zeros(len(given.layers), len(ids))
    for column, (prompt, response) in enumerate(ids):
        with torch.no_grad():
            output = model(torch.tensor([prompt + response]), output_hidden_states=True)
        for row, (layer, vector) in enumerate(zip(given.layers, given.vectors, strict=True)):
            states = output.hidden_states[layer + 1][0, len(prompt) :]
            found[row, column] = (states @ vector).mean() / vector.dot(vector)
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_projections_equal_a_loop(architecture, batch_size):
    model, given = tiny_model(architecture), directions((0, 2))
    ids = [([5, 6, 7], [8, 9]), ([10], [11]), ([12, 13], [14, 15, 16, 17]), ([2, 3, 4, 5], [6])]
    beside = {"tone": given, "length": directions((1, 2), seed=1)}
    model.train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    found = projections(model, beside, ids, 1, batch_size)
    assert [module.training for module in model.modules()] == modes
    model.eval()
    for name, each in beside.items():
        torch.testing.assert_close(found[name], by_loop(model, each, ids), atol=1e-5, rtol=1e-5)


def policy():
    model = get_peft_model(tiny_model(), lora(4))
    randomize(model, "default", 1, scale=0.05)
    return model


def arguments(config, folder, **options):
    given = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.05,
        "logging_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "activation_checkpointing": False,
        "bf16": False,
    }
    return config(**given | options)


def plain_trainer(folder, **options):
    rows = [{"input_ids": [n, n + 1, n + 2], "labels": [-100, n + 1, n + 2]} for n in range(2, 18)]
    args = arguments(TrainingArguments, folder, **options)
    return Trainer(
        policy(), args, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer()
    )


def sft_trainer(folder):
    rows = Dataset.from_list(
        [{"prompt": each["prompt"], "completion": each["chosen"]} for each in PAIRS]
    )
    args = arguments(SFTConfig, folder)
    return SFTTrainer(policy(), args, train_dataset=rows, processing_class=tiny_tokenizer())


def dpo_trainer(folder):
    args = arguments(DPOConfig, folder)
    return DPOTrainer(
        policy(),
        args=args,
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny_tokenizer(),
    )


def test_a_trainer_of_reward_models_is_watched(tmp_path):
    args = arguments(RewardConfig, tmp_path)
    given = directions((0,))
    trainer = RewardTrainer(
        classifier(),
        args,
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"]),
    )
    monitor = rahf.DirectionMonitor(trainer, {"tone": given}, ANSWERS)
    trainer.add_callback(monitor)
    decoder = trainer.model.get_base_model().model
    before = by_loop(decoder.eval(), given, monitor._answers)
    trainer.train()
    after = by_loop(decoder.eval(), given, monitor._answers)
    assert [each["step"] for each in monitor.history] == [2, 4, 6]
    moved = (after - before).mean().item()
    assert moved != 0
    assert monitor.history[-1]["directions/tone"] == pytest.approx(moved, abs=1e-5)


@pytest.mark.parametrize("made", [plain_trainer, sft_trainer, dpo_trainer])
def test_a_trainer_logs_the_movement_and_prevention_changes_what_it_learns(made, tmp_path):
    given, moved = directions(), {}
    for alpha in (0.0, 4.0):
        trainer = made(tmp_path / str(alpha))
        monitor = rahf.DirectionMonitor(trainer, {"tone": given}, ANSWERS)
        trainer.add_callback(monitor)
        with rahf.prevent(trainer.model, given, alpha):
            trainer.train()
        logged = [each for each in trainer.state.log_history if "directions/tone" in each]
        assert [each["step"] for each in logged] == [2, 4, 6]
        losses = [each for each in trainer.state.log_history if "loss" in each]
        assert [each["step"] for each in losses] == [2, 4, 6]
        assert not [key for each in logged for key in each if key.startswith("rewards/")]
        assert logged[-1]["directions/tone/low"] <= logged[-1]["directions/tone"]
        assert [each["directions/tone"] for each in monitor.history] == [
            each["directions/tone"] for each in logged
        ]
        moved[alpha] = logged[-1]["directions/tone"]
    assert moved[0.0] != 0
    assert moved[0.0] != moved[4.0]


def test_a_reading_is_the_difference_to_the_model_before_training(tmp_path):
    trainer, given = plain_trainer(tmp_path), directions()
    monitor = rahf.DirectionMonitor(trainer, {"tone": given}, ANSWERS, every=4, batch_size=5)
    trainer.add_callback(monitor)
    before = by_loop(trainer.model.eval(), given, monitor._answers)
    trainer.train()
    after = by_loop(trainer.model.eval(), given, monitor._answers)
    assert [each["step"] for each in monitor.history] == [4, 6]
    figures = monitor.history[-1]
    expected = mean_estimate((after - before).mean(0).tolist())
    names = ("directions/tone", "directions/tone/low", "directions/tone/high")
    assert [figures[name] for name in names] == pytest.approx([*expected], abs=1e-5)
    layers = [figures[f"directions/tone/layer_{layer}"] for layer in given.layers]
    assert layers == pytest.approx((after - before).mean(1).tolist(), abs=1e-5)


def test_a_limit_ends_the_training_and_gives_the_reason(tmp_path):
    free = plain_trainer(tmp_path / "free")
    monitor = rahf.DirectionMonitor(free, {"tone": directions()}, ANSWERS, every=1)
    free.add_callback(monitor)
    free.train()
    limit = monitor.history[1]["directions/tone"] / 2
    trainer = plain_trainer(tmp_path / "stopped")
    monitor = rahf.DirectionMonitor(
        trainer, {"tone": directions()}, ANSWERS, every=1, stop_when={"tone": limit}
    )
    trainer.add_callback(monitor)
    trainer.train()
    assert trainer.state.global_step < 6
    assert "along 'tone'" in monitor.stopped


def test_a_trainer_that_logs_by_epoch_is_read_by_epoch_and_two_monitors_read_alike(tmp_path):
    options = {"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3}
    trainer = plain_trainer(tmp_path, **options)
    monitors = [
        rahf.DirectionMonitor(trainer, {name: directions()}, ANSWERS) for name in ("one", "other")
    ]
    for monitor in monitors:
        trainer.add_callback(monitor)
    trainer.train()
    assert [[each["step"] for each in monitor.history] for monitor in monitors] == [[8, 16, 24]] * 2
    losses = [each["step"] for each in trainer.state.log_history if "loss" in each]
    assert losses == [8, 16, 24]
    silent = plain_trainer(tmp_path, logging_strategy="no")
    limits = {"stop_when": {"tone": 1.0}}
    silent.add_callback(rahf.DirectionMonitor(silent, {"tone": directions()}, ANSWERS, **limits))
    with pytest.raises(ValueError, match="give `every`"):
        silent.train()


def test_watching_changes_no_digit_of_the_training(tmp_path):
    plain, watched = plain_trainer(tmp_path / "plain"), plain_trainer(tmp_path / "watched")
    watched.add_callback(rahf.DirectionMonitor(watched, {"tone": directions()}, ANSWERS, every=1))
    plain.train()
    watched.train()
    mine, theirs = watched.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_a_resumed_training_compares_with_the_model_before_the_first_step(tmp_path):
    folder = tmp_path / "run"

    def watched():
        trainer = plain_trainer(folder, save_strategy="steps", save_steps=4)
        monitor = rahf.DirectionMonitor(trainer, {"tone": directions()}, ANSWERS, every=2)
        trainer.add_callback(monitor)
        return trainer, monitor

    trainer, whole = watched()
    trainer.train()
    trainer, resumed = watched()
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert resumed.history[-1]["directions/tone"] == pytest.approx(
        whole.history[-1]["directions/tone"], abs=1e-5
    )
    path = folder / "directions_before.json"
    stored = json.loads(path.read_text())
    [(identity, values)] = stored.items()
    for changed, match in (
        ({"another": values}, "no reading of these directions and answers"),
        ({identity: {"tone": [0.0]}}, "is damaged"),
        ({identity: [1]}, "is damaged"),
        ({identity: {"tone": [["a"] * len(ANSWERS)] * 2}}, "is damaged"),
        ({identity: {"tone": [[float("nan")] * len(ANSWERS)] * 2}}, "is damaged"),
    ):
        path.write_text(json.dumps(changed))
        trainer, _ = watched()
        with pytest.raises(ValueError, match=match):
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))


@pytest.mark.parametrize(
    ("given", "answers", "options", "match"),
    [
        ({}, ANSWERS, {}, "no directions"),
        ({"tone": Directions((2,), torch.ones(1, 8))}, ANSWERS, {}, "'tone'.*8 dimensions"),
        ({"tone": Directions((1,), torch.zeros(1, D_MODEL))}, ANSWERS, {}, "zero"),
        ({"tone": directions()}, ANSWERS[:1], {}, "at least 2"),
        ({"tone": directions()}, [{"prompt": "w5"}] * 2, {}, "answer 1: no response"),
        ({"tone": directions()}, ANSWERS, {"stop_when": {"other": 1.0}}, "names 'other'"),
        ({"tone": directions()}, ANSWERS, {"stop_when": {"tone": 0.0}}, "above 0"),
        ({"tone": directions()}, ANSWERS, {"every": 0}, "at least 1"),
        ({"tone": directions()}, ANSWERS, {"every": 1.5}, "whole number"),
        ({"tone": directions()}, ANSWERS, {"batch_size": "2"}, "whole number"),
        ({"tone": directions()}, ANSWERS, {"stop_when": {"tone": float("inf")}}, "a movement"),
        ({"tone": directions()}, ANSWERS, {"stop_when": {"tone": True}}, "a movement"),
        ({"tone": directions()}, ANSWERS, {"stop_when": "0.5"}, "limits by name"),
        ({"tone/low": directions()}, ANSWERS, {}, "without '/'"),
        ({"tone": "out/tone"}, ANSWERS, {}, "Directions.load"),
        ({"tone": directions()}, ["w5 w6"] * 3, {}, "records as"),
        ({"tone": directions()}, None, {}, "records as"),
        ({"tone": directions()}, 3, {}, "records as"),
        (directions(), ANSWERS, {}, "directions by name"),
        ({1: directions()}, ANSWERS, {}, "printable text"),
        ({"": directions()}, ANSWERS, {}, "printable text"),
        ({"a\n": directions()}, ANSWERS, {}, "printable text"),
        ({"tone": directions()}, ANSWERS, {"trainer": None}, "no model and no processing_class"),
    ],
)
def test_what_cannot_be_watched_is_refused(given, answers, options, match, tmp_path):
    options = {"trainer": plain_trainer(tmp_path), **options}
    with pytest.raises(ValueError, match=match):
        rahf.DirectionMonitor(directions=given, answers=answers, **options)
