import json
import math
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from tiny_models import DEPTH, EOS, lora, make_family, tiny_dataset, tiny_tokenizer
from tiny_runs import (
    QUIET,
    KillAfter,
    KilledError,
    alignment_trainer,
    assert_same_weights,
    files_of,
    largest_difference,
    policy_weights,
)
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from rahf.directions.vectors import Directions
from rahf.export.hub import collect
from rahf.models.adapters import attach_policy, frozen_pass, trainable
from rahf.models.capture import record
from rahf.models.likelihood import preference_margins
from rahf.trainer import RAHFTrainer
from rahf.trainer_config import RAHFConfig
from rahf.training.preparation import mean_shift
from rahf.training.resumable_trainer import NonFiniteError
from rahf.training.run_files import data_set_names

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
LAYERS = (0, 2)
RETAINED = [[3, 4, 5, 6], [7, 8], [9, 10, 11]]
EVERY_TERM = {
    "retain_weight": 0.3,
    "kl_weight": 0.2,
    "sft_weight": 0.1,
    "retain_texts": RETAINED,
}
WITH_DPO = {"dpo_weight": 0.5, "pairs_together": True}
METHODS = [
    ("dual", "base"),
    ("dual", "positive"),
    ("scit", "base"),
    ("scit", "contrast"),
    ("dpo_shift", "base"),
    ("lorra", "base"),
]


def states_of(model):
    model.eval()
    with record(model, LAYERS, torch.arange(IDS.numel()), stop=False) as recording:  # noqa: SIM117
        with torch.no_grad():
            model(input_ids=IDS)
    return recording.stack()


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Gradients(TrainerCallback):
    """Largest gradient of every parameter in every step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(
            {
                name: parameter.grad.abs().max().item()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        )


@pytest.mark.parametrize("terms", [{}, EVERY_TERM])
@pytest.mark.parametrize(("method", "reference"), METHODS)
def test_every_parameter_of_the_policy_is_trained_and_nothing_else(
    family, tmp_path, method, reference, terms
):
    gradients = Gradients()
    trainer = alignment_trainer(
        family,
        tmp_path,
        method=method,
        reference=reference,
        max_steps=2,
        save_strategy="no",
        callbacks=[gradients],
        **terms,
    )
    before = snapshot(trainer.model)
    trainer.train()
    names = {name for name, part in trainer.model.named_parameters() if part.requires_grad}
    # Rank 2 on two projections of the blocks 0, 1 and 2: two matrices each.
    assert len(names) == 3 * 2 * 2
    assert all(".default." in name for name in names)
    # While B is zero, A has no gradient: the second step reaches all.
    assert set(gradients.steps[1]) == names
    assert all(largest > 0 for largest in gradients.steps[1].values())
    after = trainer.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == names


@pytest.mark.parametrize("architecture", ["mistral", "qwen3", "gemma3", "gpt2", "gpt_neox"])
def test_every_parameter_is_trained_in_other_architectures(architecture, tmp_path):
    gradients = Gradients()
    trainer = alignment_trainer(
        make_family(tmp_path, architecture),
        tmp_path / "out",
        max_steps=2,
        save_strategy="no",
        callbacks=[gradients],
    )
    trainer.train()
    assert len(gradients.steps[1]) == len(trainable(trainer.model)) > 0
    assert all(largest > 0 for largest in gradients.steps[1].values())


def test_training_reaches_the_asked_shift(family, tmp_path):
    trainer = alignment_trainer(
        family,
        tmp_path,
        max_steps=40,
        alpha=2.0,
        learning_rate=2e-2,
        per_device_train_batch_size=8,
        save_strategy="no",
        peft_config=lora(rank=8),
    )
    trainer.train()
    log = [line for line in trainer.state.log_history if "loss" in line]
    assert log[0]["repr/reached"] == 0
    assert log[-1]["repr/reached"] > 0.5
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]


def test_adapters_are_trained_in_float32_on_a_bfloat16_base(family, tmp_path):
    base = family.load_base(dtype=torch.bfloat16)
    trainer = alignment_trainer(
        family, tmp_path, base=base, learning_rate=2e-5, max_steps=2, save_strategy="no"
    )
    start = policy_weights(trainer)
    trainer.train()
    end = policy_weights(trainer)
    assert {weight.dtype for weight in end.values()} == {torch.float32}
    for name in start:
        assert not torch.equal(start[name], end[name]), name


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("llama", {"use_dora": True}),
        ("gpt2", {"use_dora": True, "use_rslora": True}),
        ("llama", {"use_rslora": True}),
    ],
)
def test_the_saved_policy_has_the_hidden_states_it_had_in_training(
    family, gpt2_family, tmp_path, model, options
):
    family = {"llama": family, "gpt2": gpt2_family}[model]
    out, kind = tmp_path / "out", lora(4, **options)
    trainer = alignment_trainer(family, out, save_strategy="no", peft_config=kind)
    trainer.train()
    trainer.save_model()
    states = states_of(trainer.model)
    assert not torch.allclose(states, states_of(family.load_base()), atol=1e-3)

    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(states_of(loaded), states)

    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(states_of(plain), states, atol=1e-4)


def test_the_folder_holds_the_policy_its_tokenizer_and_its_description(family, tmp_path):
    trainer = alignment_trainer(family, tmp_path, save_strategy="no", eval_pairs=2, **WITH_DPO)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    files = files_of(tmp_path)
    assert {str(name) for name in files} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "log.jsonl",
        "metrics.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.png",
    }
    policy = sum(weight.numel() for weight in policy_weights(trainer).values())
    assert len(next(v for k, v in files.items() if k.suffix == ".safetensors")) < 4 * policy + 4000
    metrics = json.loads(files[Path("metrics.json")])
    assert metrics["train_runtime"] > 0
    assert 0 <= metrics["eval_preference/accuracies"] <= 1
    for layer in (0, 2):
        low, mean, high = (
            metrics[f"eval_repr/reached{end}/layer_{layer}"] for end in ("_low", "", "_high")
        )
        assert low <= mean <= high
    card = ModelCard.load(tmp_path / "README.md")
    assert "RAHF-DUAL with a DPO term" in card.text
    assert "target layers: 0, 2" in card.text
    reached = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert reached["reached"] == pytest.approx(metrics["eval_repr/reached"])

    upload = collect(tmp_path, "me/warm", "someone/tiny")
    assert upload.files.keys() == {str(name) for name in files}
    for text in ("RAHF-DUAL with a DPO term", "Trained from Python", "target layers: 0, 2"):
        assert text in upload.card()
    assert 'from_pretrained("me/warm")' in upload.card()
    sent = {
        name: each if isinstance(each, bytes) else each.read_bytes()
        for name, each in upload.files.items()
    }
    assert json.loads(sent["metrics.json"])["settings"]["model_name_or_path"] == "someone/tiny"
    assert not any(str(family.base).encode() in content for content in sent.values())


def test_a_card_that_the_user_wrote_is_kept(family, tmp_path, caplog):
    trainer = alignment_trainer(family, tmp_path, save_strategy="no", max_steps=1)
    trainer.train()
    (tmp_path / "README.md").write_text("my notes")
    trainer.save_model()
    assert (tmp_path / "README.md").read_text() == "my notes"
    assert "README.md is not a card of rahf" in caplog.text
    assert collect(tmp_path, "me/warm", "someone/tiny").card() == "my notes"
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"no recipe\.yaml, nor settings of RAHFTrainer"):
        collect(tmp_path, "me/warm", "someone/tiny")


def test_a_card_names_the_repository_that_the_rows_were_read_from(tmp_path):
    for name, found in (("org___my-pairs", ["org/my-pairs"]), ("json", [])):
        tiny_dataset(2).save_to_disk(tmp_path / name / "default")
        assert data_set_names(datasets.load_from_disk(tmp_path / name / "default")) == found
    assert data_set_names(tiny_dataset(2)) == []


@pytest.mark.parametrize(("method", "reference"), [("dual", "positive"), ("scit", "contrast")])
def test_a_policy_with_a_teacher_as_reference_starts_as_that_teacher(
    family, tmp_path, method, reference
):
    trainer = alignment_trainer(
        family, tmp_path, method=method, reference=reference, save_strategy="no", max_steps=2
    )
    own = states_of(trainer.model)
    with frozen_pass(trainer.model, reference):
        assert torch.equal(states_of(trainer.model), own)
    assert torch.equal(states_of(family.load(reference)), own)
    trainer.train()
    first = next(line for line in trainer.state.log_history if "loss" in line)
    assert first["repr/reached"] == 0


def test_a_teacher_of_another_base_is_refused(family, tmp_path):
    other = make_family(tmp_path / "other", "llama")
    with pytest.raises(ValueError, match="was trained on"):
        alignment_trainer(family, tmp_path / "out", teachers=other.adapters)


def test_a_full_model_teaches_what_the_same_teacher_teaches_as_an_adapter(family, tmp_path):
    model = PeftModel.from_pretrained(family.load_base(), family.adapters["positive"])
    model.merge_and_unload().save_pretrained(tmp_path / "full")
    results = []
    for name, positive in (("adapter", family.adapters["positive"]), ("full", tmp_path / "full")):
        trainer = alignment_trainer(
            family,
            tmp_path / name,
            teachers={"positive": positive, "negative": family.adapters["negative"]},
            save_strategy="no",
            optim="sgd",
            learning_rate=1.0,
        )
        trainer.train()
        results.append(policy_weights(trainer))
        full = trainer.alignment.frozen_views.teachers
        # The blocks up to the top target layer.
        assert [len(each.model.layers) for each in full.values()] == [3] * len(full)
        assert set(full) == ({"positive"} if name == "full" else set())
    assert largest_difference(*results) < 1e-4
    assert not any(weight.abs().max() == 0 for weight in results[0].values())


def test_missing_teachers_are_trained_first(family, tmp_path):
    args = RAHFConfig(
        str(tmp_path / "out"),
        shift="token",
        target_layers=[0, 2],
        max_steps=1,
        teacher_args={"max_steps": 2, **QUIET},
        **QUIET,
    )
    trainer = RAHFTrainer(str(family.base), args, tiny_dataset(3), peft_config=lora())
    assert set(trainer.model.peft_config) == {"default", "positive", "negative"}
    trainer.train()
    for name in ("positive", "negative"):
        teacher = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out" / "teachers" / name)
        with frozen_pass(trainer.model, name):
            assert torch.equal(states_of(trainer.model), states_of(teacher))
        assert not torch.equal(states_of(teacher), states_of(family.load_base()))


def test_missing_teachers_take_over_rate_length_and_batch(family, tmp_path, monkeypatch):
    asked = {}

    def remember(names, base, rows, tokenizer, peft_config, folder, options, packing):
        asked.update(options)
        return {name: family.adapters[name] for name in names}

    monkeypatch.setattr("rahf.training.preparation.train_teachers", remember)
    args = RAHFConfig(
        str(tmp_path),
        shift="token",
        target_layers=[0],
        max_steps=7,
        per_device_train_batch_size=3,
        pairs_together=False,
        dpo_weight=0.0,
        teacher_args={"max_steps": 2},
        logging_steps=3,
        **QUIET,
    )
    RAHFTrainer(str(family.base), args, tiny_dataset(3), peft_config=lora())
    assert asked["max_steps"] == 2
    assert asked["per_device_train_batch_size"] == asked["logging_steps"] == 3
    assert asked["learning_rate"] == args.learning_rate == 1e-3


def test_teachers_cannot_be_trained_on_a_model_that_carries_a_policy(family, tmp_path):
    policy = attach_policy(family.load_base(), lora(), range(3))
    with pytest.raises(ValueError, match=r"needs the teachers \['positive', 'negative'\]"):
        alignment_trainer(family, tmp_path, base=policy, teachers={})


def test_raw_pairs_are_tokenised(family, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pairs = datasets.Dataset.from_list(
        [{"prompt": "w5 w6", "chosen": "w7 w8", "rejected": "w9"}] * 4
    )
    args = RAHFConfig(str(tmp_path / "out"), max_steps=1, target_layers=[0, 2], **QUIET)
    trainer = RAHFTrainer(
        family.load_base(), args, pairs, pairs, tiny_tokenizer(), lora(), family.adapters
    )
    assert "chosen_ids" in trainer.eval_rows.column_names
    trainer.train()


LAYER_KEYS = [f"{name}/layer_{layer}" for name in ("reached", "cosine") for layer in LAYERS]


TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} "
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}w39 {% endif %}{% endfor %}"
)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_chat_template_is_that_of_all_rows_and_of_the_saved_tokenizer(
    family, tmp_path, monkeypatch, as_file
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    pairs = datasets.Dataset.from_list(
        [{"prompt": "w5 w6", "chosen": "w7 w8", "rejected": "w9"}] * 4
    )
    tokenizer = tiny_tokenizer()
    args = RAHFConfig(
        str(tmp_path / "out"),
        method="lorra",
        target_layers=[2],
        max_steps=1,
        instructions={"positive": "w20", "negative": "w21"},
        chat_template=str(tmp_path / "template.jinja") if as_file else TEMPLATE,
        **QUIET,
    )
    trainer = RAHFTrainer(family.load_base(), args, pairs, pairs, tokenizer, lora())
    item = trainer.train_dataset[0]
    assert (item["prompt_ids"], item["response_ids"]) == ([5, 6, 39], [7, 8, EOS])
    assert trainer.eval_rows[0]["prompt_ids"] == [5, 6, 39]
    trainer.save_model()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE
    assert tokenizer.chat_template is None


def test_the_last_steps_are_logged_though_no_multiple_of_logging_steps(family, tmp_path):
    def logged(**options):
        folder = tmp_path / "-".join(map(str, options.values()))
        trainer = alignment_trainer(family, folder, save_strategy="no", **options)
        trainer.train()
        return [line["step"] for line in trainer.state.log_history if "loss" in line]

    assert logged(logging_steps=100) == [6]
    assert logged(logging_steps=4) == [4, 6]
    assert logged(logging_steps=3) == [3, 6]
    assert logged(logging_strategy="no") == []


def test_the_log_reports_terms_reached_share_and_cosine_of_every_layer(family, tmp_path):
    trainer = alignment_trainer(family, tmp_path, save_strategy="no", **EVERY_TERM)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    keys = ["align", "retain", "kl", "sft", "reached", "cosine", *LAYER_KEYS]
    assert len(lines) == 6
    for line in lines:
        assert {key for key in line if key.startswith("repr/")} == {f"repr/{key}" for key in keys}
        weighted = line["repr/align"] + sum(
            EVERY_TERM[f"{term}_weight"] * line[f"repr/{term}"] for term in ("retain", "kl", "sft")
        )
        assert line["loss"] == pytest.approx(weighted, rel=1e-4)
        for name in ("reached", "cosine"):
            per_layer = [line[f"repr/{name}/layer_{layer}"] for layer in LAYERS]
            assert line[f"repr/{name}"] == pytest.approx(sum(per_layer) / 2)
            assert -1.01 <= line["repr/cosine"] <= 1.01
    assert lines[0]["repr/reached"] == lines[0]["repr/cosine"] == 0
    assert lines[-1]["repr/reached"] > 0


def test_a_tracker_receives_loss_reached_share_and_every_layer(family, tmp_path, tracked):
    trainer = alignment_trainer(family, tmp_path, report_to="trackio", max_steps=3, eval_pairs=2)
    trainer.train()
    trainer.evaluate()
    steps = [values for _, _, values in tracked if "loss" in values]
    assert [step for _, step, values in tracked if "loss" in values] == [1, 2, 3]
    wanted = {"loss", "repr/align", "repr/reached", *(f"repr/{key}" for key in LAYER_KEYS)}
    assert all(wanted <= values.keys() for values in steps)
    assert all(isinstance(values[name], float) for values in steps for name in wanted)
    measured = tracked[-1][2]
    assert {"eval_loss", "eval_repr/reached", "eval_preference/accuracies"} <= measured.keys()


def test_an_unknown_tracker_is_refused_before_a_model_is_loaded():
    with pytest.raises(ValueError, match="report_to: 'paper' is not a tracker"):
        RAHFConfig("out", **{**QUIET, "report_to": "paper"})


def test_a_line_of_the_log_is_the_mean_over_the_steps_since_the_last(family, tmp_path):
    each = alignment_trainer(family, tmp_path / "each", save_strategy="no")
    every_third = alignment_trainer(family, tmp_path / "third", save_strategy="no", logging_steps=3)
    for trainer in (each, every_third):
        trainer.train()
    fine, coarse = (
        [line["repr/align"] for line in trainer.state.log_history if "repr/align" in line]
        for trainer in (each, every_third)
    )
    expected = [sum(fine[:3]) / 3, sum(fine[3:]) / 3]
    assert coarse == pytest.approx(expected, rel=1e-5)


def test_evaluation_measures_held_out_pairs(family, tmp_path):
    trainer = alignment_trainer(
        family, tmp_path, eval_pairs=5, save_strategy="no", per_device_eval_batch_size=3
    )
    trainer.train()
    metrics = trainer.evaluate()
    keys = ["align", "reached", "cosine", *LAYER_KEYS]
    assert {f"eval_repr/{key}" for key in keys} <= set(metrics)
    margins = preference_margins(trainer.model, trainer.eval_rows, EOS)
    assert metrics["eval_preference/accuracies"] == pytest.approx(
        (margins > 0).float().mean().item()
    )
    assert metrics["eval_preference/margins"] == pytest.approx(margins.mean().item(), abs=1e-5)
    assert math.isfinite(metrics["eval_loss"])
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_repr/align"], rel=1e-3)


@pytest.mark.parametrize("kl_rows", ["retain", "responses"])
def test_evaluation_measures_every_term_that_is_trained(family, tmp_path, kl_rows):
    trainer = alignment_trainer(
        family,
        tmp_path,
        eval_pairs=3,
        save_strategy="no",
        max_steps=2,
        retain_texts=None,
        retain_weight=0.5,
        kl_weight=0.5,
        kl_rows=kl_rows,
        retain_rows=2,
        retain_tokens=4,
    )
    trainer.train()
    metrics = trainer.evaluate()
    terms = [metrics[f"eval_repr/{term}"] for term in ("align", "retain", "kl")]
    assert min(terms) > 0
    assert metrics["eval_loss"] == pytest.approx(terms[0] + (terms[1] + terms[2]) / 2, rel=1e-3)


def test_evaluation_changes_neither_the_policy_nor_the_steps_to_come(family, tmp_path):
    plain = alignment_trainer(family, tmp_path / "plain", save_strategy="no")
    watched = alignment_trainer(
        family,
        tmp_path / "watched",
        eval_pairs=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="no",
    )
    for trainer in (plain, watched):
        trainer.train()
    assert largest_difference(policy_weights(plain), policy_weights(watched)) == 0


def test_a_mean_shift_is_fitted_once_and_is_that_of_all_responses(family, tmp_path):
    trainer = alignment_trainer(family, tmp_path, shift="mean", save_strategy="no", max_steps=2)
    token = alignment_trainer(family, tmp_path)
    items = [token.train_dataset[index] for index in range(len(token.train_dataset))]
    batches = [(token.data_collator(items), True), (token.data_collator(items[:2]), False)]
    expected = mean_shift(token.alignment, batches, token.args.device)
    assert torch.allclose(trainer.alignment.directions, expected.vectors, atol=1e-5)
    assert trainer.alignment.frozen_views.views.teachers() == ()
    trainer.train()


def test_a_batch_that_does_not_count_adds_neither_shift_nor_responses(family, tmp_path):
    trainer = alignment_trainer(family, tmp_path)
    batches = [
        trainer.data_collator([trainer.train_dataset[index] for index in indices])
        for indices in ((0, 1, 2), (3, 4))
    ]
    counted, whole, both = (
        mean_shift(trainer.alignment, list(zip(batches, counts, strict=False)), torch.device("cpu"))
        for counts in ((True, False), (True,), (True, True))
    )
    assert counted.metadata["responses"] == whole.metadata["responses"] == "3"
    assert both.metadata["responses"] == "5"
    assert torch.equal(counted.vectors, whole.vectors)
    assert not torch.allclose(both.vectors, whole.vectors)


def test_stored_directions_are_read_from_their_folder(family, tmp_path):
    vectors = torch.randn(DEPTH, 16, generator=torch.Generator().manual_seed(0))
    Directions(tuple(range(DEPTH)), vectors).save(tmp_path / "stored")
    options = {"method": "direction", "directions": str(tmp_path / "stored")}
    trainer = alignment_trainer(family, tmp_path / "out", save_strategy="no", **options)
    assert torch.equal(trainer.alignment.directions, vectors[list(LAYERS)])
    assert set(trainer.model.peft_config) == {"default"}
    trainer.train()


def test_retained_texts_are_sampled_from_the_reference_where_none_are_given(family, tmp_path):
    options = {
        "retain_weight": 0.5,
        "retain_texts": None,
        "retain_rows": 3,
        "retain_tokens": 12,
        "save_strategy": "no",
    }
    first, second, other = (
        alignment_trainer(family, tmp_path / str(index), reference=reference, **options)
        for index, reference in enumerate(("base", "base", "positive"))
    )
    texts, again, of_positive = (
        [trainer.train_dataset[index]["retain_ids"] for index in range(3)]
        for trainer in (first, second, other)
    )
    assert texts == again
    assert texts != of_positive
    assert all(9 <= len(text) <= 12 for text in texts)


def test_without_a_term_that_needs_them_no_texts_are_retained(family, tmp_path):
    trainer = alignment_trainer(family, tmp_path, retain_texts=None, kl_weight=0.1)
    assert "retain_ids" not in trainer.train_dataset[0]


def test_a_random_side_is_drawn_anew_in_every_epoch_of_a_run(family, tmp_path):
    options = {"pairs": 6, "response_source": "random", "save_strategy": "no"}
    trainer = alignment_trainer(family, tmp_path, max_steps=9, **options)
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda items: seen.extend(items) or collate(items)
    trainer.train()
    drawn = [
        {item["row"]: item["chosen"] for item in seen[start : start + 6]} for start in (0, 6, 12)
    ]
    responses = trainer.train_dataset
    for epoch, sides in enumerate(drawn):
        responses.set_epoch(epoch)
        items = [responses[index] for index in range(6)]
        assert sides == {item["row"]: item["chosen"] for item in items}
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_workers_that_live_on_draw_what_a_run_without_workers_draws(family, tmp_path):
    options = {"pairs": 6, "response_source": "random", "save_strategy": "no", "max_steps": 9}
    workers = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    alone = alignment_trainer(family, tmp_path / "alone", **options)
    beside = alignment_trainer(family, tmp_path / "beside", **options, **workers)
    for trainer in (alone, beside):
        trainer.train()
    assert_same_weights(policy_weights(beside), policy_weights(alone))


def test_options_of_the_method_are_checked_with_the_others():
    with pytest.raises(ValueError, match="alpha: 0"):
        RAHFConfig("out", alpha=0.0, **QUIET)
    with pytest.raises(ValueError, match="distance"):
        RAHFConfig("out", distance="l3", **QUIET)


def test_a_target_layer_beyond_the_model_is_refused(family, tmp_path):
    with pytest.raises(ValueError, match="reaches block 4, but the model has 4 blocks"):
        alignment_trainer(family, tmp_path, target_layers=[1, 4])


def test_a_batch_that_tears_a_pair_apart_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"per_device_train_batch_size: 3 is odd.*set it to 4"):
        RAHFConfig(str(tmp_path), pairs_together=True, per_device_train_batch_size=3, **QUIET)


def test_held_out_batches_that_tear_a_pair_apart_are_refused_beside_a_dpo_term(tmp_path):
    given = {"pairs_together": True, "dpo_weight": 1.0, "per_device_eval_batch_size": 5}
    with pytest.raises(ValueError, match=r"per_device_eval_batch_size: 5 is odd.*set it to 6"):
        RAHFConfig(str(tmp_path), **given, **QUIET)


def test_a_dpo_term_begins_at_log_2_and_falls(family, tmp_path):
    options = {"pairs_together": True, "dpo_weight": 20.0, "max_steps": 12, "save_strategy": "no"}
    trainer = alignment_trainer(
        family, tmp_path, eval_pairs=3, per_device_eval_batch_size=4, **options
    )
    trainer.train()
    first, *_, last = (line["repr/dpo"] for line in trainer.state.log_history if "loss" in line)
    assert first == pytest.approx(math.log(2), abs=1e-3)
    assert last < first - 0.1
    assert 0 < trainer.evaluate()["eval_repr/dpo"] < 2


def test_a_run_with_pairs_together_goes_on_as_if_it_had_not_been_killed(family, tmp_path):
    options = {"pairs": 4, "pairs_together": True}
    whole = alignment_trainer(family, tmp_path / "whole", **options)
    seen = []
    whole.data_collator = KeepRows(whole.data_collator, seen)
    whole.train()
    assert all(first == second for first, second in seen)
    assert sorted(first for first, _ in seen[:4]) == [100, 101, 102, 103]
    killed = alignment_trainer(family, tmp_path / "killed", callbacks=[KillAfter(5)], **options)
    with pytest.raises(KilledError):
        killed.train()
    again = alignment_trainer(family, tmp_path / "killed", **options)
    again.train(resume_from_checkpoint=again.last_checkpoint())
    assert_same_weights(policy_weights(again), policy_weights(whole))


class KeepRows:
    """A collator that notes the rows of every batch."""

    def __init__(self, collator, seen):
        self.collator = collator
        self.seen = seen

    def __call__(self, items):
        self.seen.append([item["row"] for item in items])
        return self.collator(items)


def test_held_out_figures_do_not_count_what_fills_the_last_batches_of_ranks_up(
    family, tmp_path, monkeypatch
):
    options = {"eval_pairs": 3, "per_device_eval_batch_size": 4, "max_steps": 2}
    trainer = alignment_trainer(family, tmp_path, **options)
    trainer.train()
    whole = trainer.evaluate()
    loss, items = 0.0, 0
    for rank in range(2):
        one_rank = {"num_processes": 2, "process_index": rank}
        with monkeypatch.context() as patched:
            for name, value in one_rank.items():
                patched.setattr(type(trainer.accelerator), name, value)
            sampler = BatchSampler(SequentialSampler(trainer.eval_dataset), 4, drop_last=False)
            trainer._held_out_batches, trainer._held_out = 0, [0.0, 0]
            trainer.model.eval()
            for indices in BatchSamplerShard(sampler, 2, rank):
                batch = trainer.data_collator([trainer.eval_dataset[index] for index in indices])
                trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)
        loss, items = loss + trainer._held_out[0], items + trainer._held_out[1]
    assert items == 6
    assert loss / items == pytest.approx(whole["eval_loss"], rel=1e-6)
    for name, value in trainer._tally["eval"].take(trainer.accelerator).items():
        assert value == pytest.approx(whole[f"eval_{name}"], rel=1e-5), name


def test_held_out_likelihoods_that_are_not_finite_are_no_accuracy(family, tmp_path, monkeypatch):
    trainer = alignment_trainer(family, tmp_path, eval_pairs=3)
    nan = torch.tensor([1.0, float("nan"), 2.0])
    monkeypatch.setattr(trainer, "preference_margins", lambda: nan)
    with pytest.raises(NonFiniteError, match=r"1 of 3 held-out pairs are inf or nan, .* row 501"):
        trainer.evaluate()
