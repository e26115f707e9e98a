import math

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from reference import objective as loops
from tiny_models import EOS, lora, tiny_dataset, tiny_model, tiny_pairs, tiny_tokenizer
from tiny_runs import (
    QUIET,
    KillAfter,
    KilledError,
    assert_same_weights,
    files_of,
    largest_difference,
    policy_weights,
)
from torch import nn
from transformers import TrainingArguments, set_seed
from transformers.modeling_outputs import CausalLMOutput

from rahf.models.adapters import attach_policy, trainable
from rahf.models.likelihood import likelihood, preference_margins
from rahf.training.teachers import (
    InstructionCollator,
    InstructionTrainer,
    PairCollator,
    PreferenceTrainer,
    SideCollator,
    SideTrainer,
    contrastive_loss,
    train_teacher,
    train_teachers,
)

RATIOS = (1.0, 2.0, 3.0, 4.0), (4.0, 3.0, 2.0, 1.0), (1.0, 1.0, 1.0, 7.0), (5.0, 3.0, 1.0, 1.0)
"""Of the token after 0, 1, 2 and 3; each row sums up to 10."""


class Bigrams(nn.Module):
    """A model of four tokens whose prediction depends on the token before and on nothing else."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(RATIOS).log())

    def forward(self, input_ids, logits_to_keep, **_):
        return CausalLMOutput(logits=self.logits[input_ids][:, logits_to_keep])


def untrained(kind, folder, **options):
    """Make a trainer whose loss is then computed for another model than its own."""
    model = attach_policy(tiny_model(), lora(), range(1))
    return kind(model, TrainingArguments(str(folder), **QUIET), **options)


def bigram_batch(packed=False):
    """Return one pair: chosen 2 3 after a prompt that ends in 0 (good view) or 1 (bad one)."""
    pair = {
        "row": 9,
        "prompt_ids": [0],
        "chosen_ids": [2, 3],
        "rejected_ids": [3],
        "positive_prompt_ids": [2, 0],
        "negative_prompt_ids": [1],
    }
    return InstructionCollator(0, packed)([pair])


class Scorer(nn.Module):
    """A model that is one adapter's and the base's at once: two tables of bigrams."""

    def __init__(self):
        super().__init__()
        self.own, self.base = Bigrams(), Bigrams()
        self.base.logits.data.zero_()  # every token as likely: 1/4


@pytest.mark.parametrize("packed", [False, True])
def test_dpo_is_that_of_its_paper(tmp_path, packed, monkeypatch):
    # Chosen 2 3 after 0: p = .3 * .7, the base 1/16; rejected 3 after 0: p = .4, the base 1/4.
    pair = {"row": 4, "prompt_ids": [0], "chosen_ids": [2, 3], "rejected_ids": [3]}
    batch, models = PairCollator(0, packed)([pair, pair]), Scorer()
    monkeypatch.setattr("rahf.training.teachers.frozen_pass", lambda *_: torch.no_grad())
    trainer = untrained(PreferenceTrainer, tmp_path, beta=0.5)
    trainer.unwrapped = models.base
    result = trainer.item_loss(models.own, batch)
    advantage = 0.5 * (math.log(0.3 * 0.7 * 16) - math.log(0.4 * 4))
    expected = -math.log(1 / (1 + math.exp(-advantage)))
    assert result.per_row.tolist() == pytest.approx([expected, expected])
    assert result.row.tolist() == [4, 4]
    assert trainer.count_items(batch) == 2
    result.per_row.sum().backward()
    assert models.own.logits.grad.abs().sum() > 0
    assert models.base.logits.grad is None


def test_a_teacher_of_dpo_begins_at_the_base_and_learns_what_is_preferred(family, tmp_path):
    rows = tiny_dataset(5)
    trainer = taught(
        family, tmp_path, "preferred", rows=rows, per_device_train_batch_size=5, **LONGER
    )
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    base = preference_margins(family.load_base(), rows, EOS).mean().item()
    assert margin(tmp_path, rows) > base + 0.3


@pytest.mark.parametrize("packed", [False, True])
def test_a_response_is_scored_by_the_tokens_before_its_own(packed):
    # p(2 | 0) p(3 | 2) = .3 * .7 under the good instruction, p(2 | 1) p(3 | 2) = .2 * .7 under the
    # bad one. Read without the shift by one it would be p(2 | 2) p(3 | 3) under both.
    both = likelihood(Bigrams(), bigram_batch(packed)["rows"])
    match, mismatch = both.sums().chunk(2)
    assert match.tolist() == pytest.approx([math.log(0.3 * 0.7), math.log(0.1)])
    assert mismatch.tolist() == pytest.approx([math.log(0.2 * 0.7), math.log(0.4)])
    assert both.means()[:2].tolist() == pytest.approx([math.log(0.21) / 2, math.log(0.1)])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_contrastive_loss_by_hand_on_four_tokens(tmp_path, smoothing, packed):
    # Chosen: P_match = sqrt(.3 * .7), P_mismatch = sqrt(.2 * .7).
    # Rejected (its own instruction is the bad one): P_match = p(3 | 1) = .1, P_mismatch = .4.
    expected = []
    for own, other in ((math.sqrt(0.21), math.sqrt(0.14)), (0.1, 0.4)):
        told_apart = -(1 - smoothing) * math.log(own / (own + other))
        expected.append(-math.log(own) + told_apart - smoothing * math.log(other / (own + other)))
    if smoothing == 0:
        assert expected == pytest.approx(
            [0.7803 + math.log(1 + math.sqrt(2 / 3)), math.log(10) + math.log(5)], abs=1e-4
        )

    trainer = untrained(InstructionTrainer, tmp_path, smoothing=smoothing)
    batch = bigram_batch(packed)
    result = trainer.item_loss(Bigrams(), batch)
    assert trainer.count_items(batch) == 2
    assert result.per_row.tolist() == pytest.approx(expected, rel=1e-6)
    assert result.row.tolist() == [9, 9]


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.5])
def test_the_contrastive_loss_equals_its_formula(smoothing):
    match, mismatch = torch.tensor([-0.5, -2.0, -1.0]), torch.tensor([-1.5, -0.3, -1.0])
    expected = [
        loops.contrastive(own, other, smoothing)
        for own, other in zip(match.tolist(), mismatch.tolist(), strict=True)
    ]
    found = contrastive_loss(match, mismatch, smoothing)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_contrastive_loss_is_finite_where_one_side_is_impossible():
    loss = contrastive_loss(torch.tensor([-300.0, -1.0]), torch.tensor([-1.0, -300.0]), 0.2)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("packed", [False, True])
def test_supervised_fine_tuning_counts_response_tokens_and_nothing_else(tmp_path, packed):
    # chosen 2 3 after 0: -log(.3 * .7), two tokens.
    pair = {"row": 4, "prompt_ids": [1, 0], "chosen_ids": [2, 3], "rejected_ids": [1]}
    trainer = untrained(SideTrainer, tmp_path)
    for side, cost, tokens in (("chosen", -math.log(0.21), 2), ("rejected", -math.log(0.2), 1)):
        batch = SideCollator(0, side, packed)([pair])
        result = trainer.item_loss(Bigrams(), batch)
        assert result.per_row.item() == pytest.approx(cost)
        assert trainer.count_items(batch) == tokens
        assert result.row.tolist() == [4]


def test_each_response_follows_the_instruction_that_fits_and_the_other():
    pairs = tiny_pairs(2)
    batch = InstructionCollator(EOS, packed=True)(pairs)
    ids, spans = batch["rows"]["input_ids"][0].tolist(), batch["rows"]["spans"]
    texts = [ids[start:stop] for [(start, stop)] in spans]
    fits, other = [], []
    for pair in pairs:
        good, bad = pair["positive_prompt_ids"], pair["negative_prompt_ids"]
        fits += [good + pair["chosen_ids"], bad + pair["rejected_ids"]]
        other += [bad + pair["chosen_ids"], good + pair["rejected_ids"]]
    assert texts == fits + other
    assert batch["row"].tolist() == [100, 100, 101, 101]


def teacher_arguments(folder, **options):
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 2,
            "max_steps": 6,
            "save_steps": 1,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "remove_unused_columns": False,
            "seed": 3,
            **QUIET,
            **options,
        }
    )


def taught(family, folder, name="positive", base=None, rows=None, **options):
    return train_teacher(
        name,
        base if base is not None else family.load_base(),
        rows if rows is not None else tiny_dataset(5),
        tiny_tokenizer(),
        lora(),
        teacher_arguments(folder, **options),
    )


def saved_weights(folder):
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    return {name: weight for name, weight in model.named_parameters() if "lora_" in name}


def margin(folder, pairs, prompt="prompt_ids"):
    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    pairs = [{**pair, "prompt_ids": pair[prompt]} for pair in pairs]
    return preference_margins(model, pairs, EOS).mean().item()


LONGER = {"max_steps": 30, "save_strategy": "no", "learning_rate": 3e-2}


def test_dual_teachers_learn_their_side(family, tmp_path):
    rows = tiny_dataset(5)
    folders = train_teachers(
        ("positive", "negative"),
        family.load_base(),
        rows,
        tiny_tokenizer(),
        lora(),
        tmp_path,
        {
            **LONGER,
            **QUIET,
            "seed": 3,
            "per_device_train_batch_size": 5,
        },
    )
    assert folders == {name: tmp_path / name for name in ("positive", "negative")}
    assert margin(folders["positive"], rows) > 0.5
    assert margin(folders["negative"], rows) < -0.5


def test_the_contrast_teacher_learns_to_follow_the_instruction(family, tmp_path):
    rows = tiny_dataset(5)
    taught(family, tmp_path, "contrast", rows=rows, per_device_train_batch_size=5, **LONGER)
    assert margin(tmp_path, rows, "positive_prompt_ids") > 0.5
    assert margin(tmp_path, rows, "negative_prompt_ids") < -0.5


def test_the_base_is_left_as_it_was(family, tmp_path):
    base = family.load_base()
    ids = torch.tensor([[5, 6, 7]])
    names, weights = list(base.state_dict()), {k: v.clone() for k, v in base.state_dict().items()}
    logits = base(ids).logits
    taught(family, tmp_path, base=base)
    assert list(base.state_dict()) == names
    assert all(torch.equal(weights[name], value) for name, value in base.state_dict().items())
    assert torch.equal(base.eval()(ids).logits, logits)


@pytest.mark.parametrize("name", ["positive", "contrast", "preferred"])
def test_a_teacher_killed_at_any_step_and_resumed_ends_with_the_very_same_weights(
    family, tmp_path, name, monkeypatch
):
    taught(family, tmp_path / "whole", name)
    whole = saved_weights(tmp_path / "whole")
    kind = {"contrast": InstructionTrainer, "preferred": PreferenceTrainer}.get(name, SideTrainer)
    train = kind.train
    for steps in range(1, 6):
        folder = tmp_path / f"killed after {steps}"
        with monkeypatch.context() as patched:

            def killed(self, steps=steps, **options):
                self.add_callback(KillAfter(steps))
                return train(self, **options)

            patched.setattr(kind, "train", killed)
            with pytest.raises(KilledError):
                taught(family, folder, name)
        assert not (folder / "adapter_model.safetensors").exists()
        set_seed(12345)
        taught(family, folder, name)
        assert_same_weights(saved_weights(folder), whole)


@pytest.mark.parametrize("name", ["positive", "contrast", "preferred"])
def test_eight_batches_of_one_teach_what_one_batch_of_eight_teaches(family, tmp_path, name):
    # Ten pairs: the last step of an epoch has two. An item is a token for `positive`.
    results = []
    for batch, accumulated in ((8, 1), (1, 8), (2, 4), (3, 3)):
        folder = tmp_path / f"{batch}x{accumulated}"
        taught(
            family,
            folder,
            name,
            rows=tiny_dataset(10),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            learning_rate=0.3,
            max_steps=3,
            save_strategy="no",
        )
        results.append(saved_weights(folder))
    whole, *others = results
    for weights in others[:2]:
        assert largest_difference(weights, whole) < 1e-4
    assert largest_difference(others[2], whole) > 1e-3


def test_every_parameter_of_a_teacher_is_taught_and_nothing_else(family, tmp_path):
    base = family.load_base()
    model = attach_policy(base, lora(), range(4))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = SideTrainer(
        model,
        args=teacher_arguments(tmp_path, max_steps=3, save_strategy="no"),
        train_dataset=tiny_dataset(4),
        data_collator=SideCollator(EOS, "chosen"),
    )
    trainer.train()
    changed = {k for k, value in model.state_dict().items() if not torch.equal(weights[k], value)}
    assert changed == set(policy_weights(trainer))
    assert len(changed) == len(trainable(model)) == 4 * 2 * 2


def test_a_teacher_leaves_a_folder_that_loads_and_holds_nothing_else(family, tmp_path):
    taught(family, tmp_path, save_strategy="no")
    names = {str(name) for name in files_of(tmp_path)}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_two_teachers_of_one_base_do_not_affect_each_other(family, tmp_path):
    base = family.load_base()
    options = {**QUIET, "max_steps": 2, "save_strategy": "no", "seed": 3}
    shared = (tiny_dataset(4), tiny_tokenizer(), lora())
    train_teachers(("positive", "negative"), base, *shared, tmp_path / "both", options)
    train_teachers(("negative",), family.load_base(), *shared, tmp_path / "alone", options)
    together = saved_weights(tmp_path / "both" / "negative")
    assert_same_weights(together, saved_weights(tmp_path / "alone" / "negative"))
