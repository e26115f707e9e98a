"""The figures of `rahf plan` against the real modules: parameters, FLOPs, saved tensors, memory."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from tiny_models import (
    _CONFIGS,
    ARCHITECTURES,
    DEPTH,
    UPPER,
    VOCABULARY,
    lora,
    tiny_model,
    tiny_tokenizer,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from rahf.cli import main
from rahf.data.rows import packed_rows
from rahf.distributed.accelerate import Launch, read_launch
from rahf.generation.answers import sample_texts
from rahf.generation.reading import reading_of
from rahf.models.capture import Narrowed, find_blocks, replaced_blocks
from rahf.models.lora_targets import oriented
from rahf.models.packing import use_packed_attention
from rahf.models.scoring import scored_together
from rahf.models.shapes import DEFAULT_TARGETS, KNOWN, read_decoder, read_lora
from rahf.plan.case import Case
from rahf.plan.command import PlanOptions, case_of
from rahf.plan.estimate import estimate, formats_of
from rahf.plan.lengths import Extent, Lengths, bounds, count_rows, read_measured
from rahf.plan.memory import (
    GIB,
    Formats,
    backward_working,
    block_saved,
    gathered_parameters,
    moment,
    resident,
    saved_for_backward,
)
from rahf.plan.passes import stages_of, steps_of
from rahf.plan.savings import changes, fitting, largest
from rahf.plan.work import Pass, Upper, pass_work
from rahf.recipe.methods import METHODS
from rahf.recipe.recipe import recipe_from_dict

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "docs" / "shapes"
TARGETS = {
    "default": None,
    "every matrix": "all-linear",
    "last matrix": ["down_proj", "mlp.c_proj", "dense_4h_to_h"],
    "attention's output": ["o_proj", "attn.c_proj", "attention.dense"],
}


def decoder_of(architecture):
    return read_decoder(_CONFIGS[architecture]().to_dict(), architecture)


def tiny_policy(
    architecture, targets=None, attention="eager", dtype=torch.float32, dropout=0.0, **options
):
    """Return a tiny PEFT model in training, its LoRA of rank 2 in float32."""
    config = _CONFIGS[architecture]()
    config._attn_implementation = attention
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # PEFT refuses names that are nowhere, which is what the other architectures' are.
    config = oriented(lora(target_modules=targets, lora_dropout=dropout, **options), base)
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()


def tiny_rows(rows=4, width=32):
    """Return ids and a mask with some padding: without any, attention would go another way."""
    ids = torch.randint(2, VOCABULARY, (rows, width))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def states(model):
    return model.get_base_model().get_decoder()(**tiny_rows()).last_hidden_state


def trained_parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_are_those_of_the_model(architecture):
    model = AutoModelForCausalLM.from_config(_CONFIGS[architecture]())
    assert decoder_of(architecture).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_trained_parameters_are_those_of_the_adapter(architecture, targets, dora):
    model = tiny_policy(architecture, TARGETS[targets], use_dora=dora)
    adapter = read_lora(decoder_of(architecture), 2, 0.0, TARGETS[targets], dora=dora)
    assert DEPTH * adapter.block_parameters == trained_parameters(model)


def test_a_pattern_of_modules_is_matched_as_peft_does():
    pattern = r".*\.(q_proj|mlp\.up_proj)"
    adapter = read_lora(decoder_of("llama"), 2, 0.0, pattern)
    assert [linear.name for linear in adapter.targets] == ["self_attn.q_proj", "mlp.up_proj"]
    model = tiny_policy("llama", pattern)
    assert DEPTH * adapter.block_parameters == trained_parameters(model)


def test_modules_that_no_block_has_are_refused():
    with pytest.raises(ValueError, match=r"lora_target_modules: \['w'\] names no matrix"):
        read_lora(decoder_of("llama"), 2, 0.0, ["w"])


def test_default_modules_are_those_of_peft():
    mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert {name: list(targets) for name, targets in DEFAULT_TARGETS.items()} == {
        name: mapping[name] for name in DEFAULT_TARGETS
    }


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("tinyllama-1.1b", 1_100_048_384),
        ("mistral-7b", 7_248_023_552),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
    ],
)
def test_published_models_have_their_published_size(name, parameters):
    config = json.loads((SHAPES / f"{name}.json").read_text())
    assert read_decoder(config, name).parameters == parameters


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="model_type 'mamba'") as error:
        read_decoder({"model_type": "mamba"}, "config.json")
    assert all(name in str(error.value) for name in KNOWN)
    with pytest.raises(ValueError, match=r"config.json: intermediate_size is missing"):
        read_decoder(
            {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}, "config.json"
        )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_flops_are_those_that_torch_counts(architecture, targets, checkpointing):
    check_flops(architecture, TARGETS[targets], checkpointing)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_flops_of_every_architecture_are_those_that_torch_counts(architecture):
    check_flops(architecture, None, checkpointing=False)


def check_flops(architecture, targets, checkpointing):
    decoder = decoder_of(architecture)
    model = tiny_policy(architecture, targets)
    if checkpointing:
        model.activation_checkpointing_enable()
    with FlopCounterMode(display=False) as forward:
        hidden = states(model)
    with FlopCounterMode(display=False) as backward:
        hidden.sum().backward()
    made = Pass("policy", 4, 32, DEPTH, True, True, columns=0)
    work = pass_work(decoder, read_lora(decoder, 2, 0.0, targets), made, checkpointing)
    assert forward.get_total_flops() == work.forward
    assert backward.get_total_flops() == work.backward + work.recomputed
    assert (work.recomputed > 0) == checkpointing


FORMATS = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16 under autocast": {"dtype": torch.bfloat16, "autocast": True},
    "float32 under autocast": {"autocast": True},
    "dropout": {"dropout": 0.1},
}


@pytest.mark.parametrize("chosen", FORMATS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_what_a_block_saves_is_what_autograd_keeps(architecture, chosen):
    check_saved(architecture, **FORMATS[chosen])


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [
        (architecture, attention)
        for architecture in ARCHITECTURES
        for attention in ("sdpa", "eager")
        if (architecture, attention) != ("gemma2", "sdpa")  # which transformers does not have
    ],
)
def test_what_every_architecture_saves_is_what_autograd_keeps(architecture, attention):
    check_saved(architecture, attention=attention)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_adapters_on_every_matrix_save_what_autograd_keeps(architecture):
    check_saved(architecture, targets="all-linear")


def check_saved(
    architecture, dtype=torch.float32, autocast=False, dropout=0.0, attention="sdpa", targets=None
):
    """Require 15 %, and 5 % of most: norms and the like are large in a tiny model."""
    model = tiny_policy(architecture, targets, attention, dtype, dropout)
    # The first block would save less than the others, of which a tiny model has few.
    model.enable_input_require_grads()
    saved = SavedBytes(model)
    with saved, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        states(model)
    decoder, size = decoder_of(architecture), torch.finfo(dtype).bits // 8
    formats = Formats(size, None, 4, size, autocast, 8, attention, False, False)
    adapter = read_lora(decoder, 2, dropout, targets)
    made = Pass("policy", 4, 32, DEPTH, True, True)
    assert saved_for_backward(decoder, adapter, formats, made) == pytest.approx(
        saved.total(), rel=0.15
    )


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the storages that autograd keeps, weights left out."""

    def __init__(self, model):
        tensors = itertools.chain(model.parameters(), model.buffers())
        self._own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self._kept = {}
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor):
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in self._own:
            self._kept[pointer] = tensor  # held, so that no other tensor takes its place
        return tensor

    def total(self):
        return sum(tensor.untyped_storage().nbytes() for tensor in self._kept.values())


def test_checkpointing_keeps_the_input_of_each_block_and_one_complete_block():
    decoder = decoder_of("llama")
    adapter = read_lora(decoder, 2, 0.0, None)
    formats = Formats(2, None, 4, 2, True, 8, "sdpa", True, True)
    made = Pass("policy", 4, 32, DEPTH, True, True)
    inputs = DEPTH * 4 * 32 * decoder.d_model * 2
    assert saved_for_backward(decoder, adapter, formats, made) == inputs
    recomputed = block_saved(decoder, adapter, formats, made)
    assert moment(decoder, adapter, formats, (made,)).activations == (
        inputs + recomputed + backward_working(decoder, formats, made)
    )


# Recipes and their stages.


def recipe(**keys):
    given = {
        "model_name_or_path": "model",
        "dataset_name": "pairs",
        "dataset_test_split": None,
        "output_dir": "out",
        "target_layers": [0, 2],
        "dpo_weight": 0.0,
        "lora_r": 2,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
    }
    return recipe_from_dict(given | keys)


def case(architecture="llama", launch=None, rows=8, **keys):
    made = recipe(**keys)
    return Case(made, decoder_of(architecture), launch or Launch(), bounds(made), rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_planned_packed_where_the_models_default_attention_takes_them(architecture):
    model = AutoModelForCausalLM.from_config(_CONFIGS[architecture]())
    assert case(architecture).packed == use_packed_attention(model)
    assert not case(architecture, packing=False).packed
    assert not case(architecture, attn_implementation="eager").packed
    assert formats_of(case(architecture), "alignment").attention == case(architecture).attention


def test_dropout_of_the_base_costs_nothing_since_it_is_off():
    config = _CONFIGS["gpt2"]().to_dict()
    assert read_decoder({**config, "resid_pdrop": 0.1}, "gpt2") == read_decoder(config, "gpt2")


@pytest.mark.parametrize("shift", ["token", "mean"])
@pytest.mark.parametrize(
    ("method", "reference"),
    [
        ("dual", "base"),
        ("dual", "positive"),
        ("scit", "base"),
        ("scit", "contrast"),
        ("dpo_shift", "base"),
        ("dpo_shift", "preferred"),
        ("lorra", "base"),
    ],
)
def test_the_passes_are_those_of_the_alignment(family_of, tmp_path, method, reference, shift):
    """Compare FLOPs of one batch of the real alignment, forward and backward; no term reads
    predictions.
    """
    from tiny_runs import alignment_trainer

    options = {"method": method, "reference": reference, "shift": shift, "sft_weight": 0.0}
    trainer = alignment_trainer(
        family_of("llama"),
        tmp_path,
        **options,
        base=family_of("llama").load_base(attn_implementation="eager"),
    )
    rows = [trainer.train_dataset[index] for index in range(2)]
    batch = trainer.data_collator(rows)
    with FlopCounterMode(display=False) as counted:
        trainer.alignment(trainer.model.train(), batch).loss.sum().backward()

    blocks = [batch[name] for name in ("reference", "positive", "negative") if name in batch]
    views = dict(zip(("prompt", "positive_prompt", "negative_prompt"), blocks, strict=False))
    planned = case(**options, retain_weight=0)
    passes = next(stage for stage in stages_of(planned) if stage.name == "alignment").usual
    total = 0
    for made in passes:
        view = "prompt"
        if method in ("scit", "lorra") and made.name in ("positive", "negative"):
            view = f"{made.name}_prompt"
        width = views[view]["input_ids"].shape[1]
        total += pass_work(planned.decoder, planned.lora, made._replace(width=width), False).total
    assert counted.get_total_flops() == total


@pytest.mark.parametrize("shift", ["token", "mean"])
def test_blocks_below_the_adapters_are_planned_once(upper_family, tmp_path, shift):
    from tiny_runs import alignment_trainer

    keys = {"method": "dual", "shift": shift, "sft_weight": 0.0, "target_layers": list(UPPER)}
    trainer = alignment_trainer(
        upper_family,
        tmp_path,
        **keys,
        peft_config=lora(layers_to_transform=list(UPPER)),
        base=upper_family.load_base(attn_implementation="eager"),
    )
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
    with FlopCounterMode(display=False) as counted:
        trainer.alignment(trainer.model.train(), batch).loss.sum().backward()

    planned = case(**keys, retain_weight=0, lora_first_layer=UPPER[0])
    alignment = next(stage for stage in stages_of(planned) if stage.name == "alignment")
    width = batch["reference"]["input_ids"].shape[1]
    works = [
        pass_work(planned.decoder, planned.lora, made._replace(width=width), False).total
        for made in alignment.usual
    ]
    assert counted.get_total_flops() == sum(works)
    assert alignment.trained == len(UPPER)


@pytest.mark.parametrize("length", [32, 300, 3000])
def test_held_out_pairs_are_planned_as_many_at_once_as_are_scored(length):
    given = {"max_length": length, "max_prompt_length": 16, "per_device_eval_batch_size": 6}
    stage = stages_of(case(dataset_test_split="test", **given))[-1]
    [held_out] = [made for made in stage.longest if made.name == "held-out"]
    pair = int(2 * held_out.scored)
    together = next(iter(scored_together([pair] * 6, batch_size=6)))
    assert held_out.rows == 2 * len(range(6)[together])


@pytest.fixture(scope="session")
def family_of(tmp_path_factory):
    from tiny_models import make_family

    made = {}

    def family(architecture):
        if architecture not in made:
            made[architecture] = make_family(tmp_path_factory.mktemp("plan"), architecture)
        return made[architecture]

    return family


def test_packed_responses_of_a_pair_share_their_prompt():
    pairs = [([1] * 40, [2] * 10, [3] * 30), ([4] * 60, [5] * 20, [6] * 4)]
    names = ("prompt", "chosen", "rejected")
    lengths = Lengths(
        tuple(dict(zip(names, map(len, pair), strict=True)) for pair in pairs), 100, 200, 0
    )
    prompts = [prompt for prompt, *_ in pairs for _ in range(2)]
    tokens = packed_rows(prompts, [ids for _, *both in pairs for ids in both])["input_ids"].numel()
    repeated = 2 * 2  # of each second row the last prompt token, which is never shared; twice
    common = {"method": "dpo_shift", "pairs_together": True, "retain_weight": 0, "shift": "token"}
    for place, name in ((0, "base"), (-1, "policy"), (-1, "positive")):
        for packing in (True, False):
            planned = replace(case(**common, packing=packing), lengths=lengths)
            (found,) = (made for made in stages_of(planned)[place].usual if made.name == name)
            if packing:
                assert found.width * 4 == pytest.approx(tokens, abs=repeated)
            else:
                assert found.width * 4 > tokens + 50


@pytest.mark.parametrize("method", ["dual", "scit", "lorra"])
def test_views_have_the_adapters_of_the_alignment(method):
    views = METHODS[method].views("base")
    stage = next(s for s in stages_of(case(method=method, shift="token")) if s.name == "alignment")
    adapted = {made.name: made.adapted for made in stage.usual}
    assert adapted == {
        "policy": True,
        "reference": views.reference.teacher is not None,
        "positive": views.positive.teacher is not None,
        "negative": views.negative.teacher is not None,
    }


def test_trained_parameters_reach_up_to_the_top_target_layer():
    plan = {part.stage.name: part for part in estimate(case(shift="token"))}
    block = case().lora.block_parameters
    assert plan["alignment"].parameters == 3 * block
    assert plan["positive"].parameters == DEPTH * block


def test_the_reference_that_is_the_positive_view_is_asked_once():
    names = [made.name for made in stages_of(case(shift="token", reference="positive"))[-1].usual]
    assert names == ["reference", "negative", "policy"]


def test_early_exit_and_terms_with_logits_decide_the_depth():
    def depths(**keys):
        return {made.name: made.depth for made in stages_of(case(shift="token", **keys))[-1].usual}

    assert set(depths().values()) == {3}
    assert depths(kl_weight=1.0) == {"reference": 4, "positive": 3, "negative": 3, "policy": 4}
    compared = {"dpo_weight": 1.0, "pairs_together": True}
    assert depths(**compared) == {"reference": 4, "positive": 3, "negative": 3, "policy": 4}
    assert depths(sft_weight=1.0) == {"reference": 3, "positive": 3, "negative": 3, "policy": 4}


@pytest.mark.parametrize("reads", [True, False])
def test_sampled_retained_texts_are_work_of_the_alignment(reads):
    keys = {"retain_rows": 6, "retain_tokens": 5, "retain_weight": 1.0 if reads else 0.0}
    [*teachers, part] = estimate(case(**keys))
    assert all(other.sampling == 0 for other in teachers)
    model = tiny_model("llama")
    model.generation_config.eos_token_id = None
    reading_of(model)  # how a model reads is tried once
    with FlopCounterMode(display=False) as counter:
        sample_texts(model, tiny_tokenizer(), rows=6, tokens=5, seed=0, progress=False)
    # The plan counts attention too, which torch does not count on a CPU.
    counted = counter.get_total_flops() if reads else 0
    assert part.sampling == pytest.approx(counted, rel=0.1)
    assert part.flops == part.stage.steps * part.step + part.sampling
    assert estimate(case(launch=Launch("ddp", 2), **keys))[-1].sampling == 2 * part.sampling
    if reads:
        assert estimate(case(**keys, retain_dataset_name="texts.jsonl"))[-1].sampling == 0


def test_retained_texts_double_the_rows_of_reference_and_policy():
    given = {"retain_weight": 1.0, "retain_tokens": 5, "shift": "token"}
    rows = {made.name: made.rows for made in stages_of(case(**given))[-1].usual}
    assert rows == {"reference": 4, "positive": 2, "negative": 2, "policy": 4}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
def test_rows_that_end_below_the_top_cost_the_lower_blocks_alone(targets, checkpointing):
    """Compare FLOPs of three rows of which two go on through the upper blocks and the head."""
    model = tiny_policy("llama", TARGETS[targets])
    if checkpointing:
        model.activation_checkpointing_enable()
    blocks, ids = find_blocks(model), torch.randint(2, VOCABULARY, (1, 3 * 32))
    # One row of 96 tokens, of which 64 go on: as a pack, but for an attention to all before.
    around = [*blocks.modules[:2], *(Narrowed(block, 64) for block in blocks.modules[2:])]
    with FlopCounterMode(display=False) as counted, replaced_blocks(blocks, around):
        output = model(
            ids,
            use_cache=False,
            attention_mask=torch.zeros(1, 1, 1, 1),
            logits_to_keep=torch.arange(64),
        )
        output.logits.sum().backward()
    decoder = decoder_of("llama")
    upper = Upper(DEPTH - 2, 1, 64)
    made = Pass("policy", 1, 96, DEPTH, True, True, columns=64, scored=64, upper=upper)
    work = pass_work(decoder, read_lora(decoder, 2, 0.0, TARGETS[targets]), made, checkpointing)
    assert counted.get_total_flops() == work.total


@pytest.mark.parametrize(
    ("keys", "narrowed"),
    [
        ({"sft_weight": 1.0}, ["policy"]),
        ({"kl_weight": 1.0}, ["policy", "reference"]),
        ({"kl_weight": 1.0, "kl_rows": "retain"}, []),
        ({"sft_weight": 1.0, "packing": False}, []),
        ({"sft_weight": 1.0, "retain_weight": 0.0}, []),
        ({}, []),
    ],
    ids=str,
)
def test_packed_retained_texts_are_planned_up_to_the_top_target_layer(keys, narrowed):
    given = {"retain_weight": 1.0, "retain_tokens": 5, "shift": "token", **keys}
    passes = stages_of(case(**given))[-1].usual
    assert sorted({made.name for made in passes if made.upper}) == narrowed
    for made in passes:
        if made.upper:
            lower, upper = made.levels()
            assert (lower.depth, lower.rows, upper.depth, upper.rows) == (3, 4, DEPTH - 3, 2)
            assert lower.tokens == upper.tokens + 2 * 5


@pytest.mark.parametrize("method", ["circuit_breakers", "rmu", "repbend"])
def test_methods_without_views_run_the_reference_and_the_policy(method):
    keys = {"method": method, "per_device_train_batch_size": 4, "retain_weight": 0.5}
    [stage] = stages_of(case(**keys))
    depth = DEPTH if method == "repbend" else 3  # which measures a KL
    assert [(made.name, made.rows, made.depth) for made in stage.usual] == [
        ("reference", 8, depth),
        ("policy", 8, depth),
    ]
    assert estimate(case(**keys))[0].flops > 0
    for change in changes(case(**keys)):
        assert "shift" not in change.text


@pytest.mark.parametrize(
    ("training", "items", "batch", "processes", "steps"),
    [
        ({"max_steps": 7}, None, 8, 1, 7),
        ({}, None, 8, 1, None),
        ({"num_train_epochs": 1}, 9, 2, 1, 5),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 2}, 9, 2, 1, 6),
        ({"num_train_epochs": 0.5}, 16, 2, 2, 2),
        ({}, 163, 8, 1, 63),
    ],
)
def test_steps_are_counted_as_the_trainer_does(training, items, batch, processes, steps):
    assert steps_of(training, items, batch, processes) == steps


def test_what_ranks_share_out_adds_up_to_the_same_flops():
    one, eight = (estimate(case(launch=Launch("ddp", n), max_steps=3)) for n in (1, 8))
    assert [8 * part.step for part in one] == [part.step for part in eight]


@pytest.mark.parametrize(
    ("training", "share"),
    [
        ({"max_steps": 16}, 0.5),  # 8 pairs, 16 responses, 2 a step: two epochs
        ({"max_steps": 4}, 1),
        ({"max_steps": -1, "num_train_epochs": 5}, 0.2),
        ({"max_steps": 6, "gradient_accumulation_steps": 4}, 1 / 3),
    ],
)
def test_kept_states_are_computed_in_the_first_epoch_alone(training, share):
    training = {"retain_weight": 0, **training}
    plain = stages_of(case(shift="token", **training))[-1]
    cached = stages_of(case(shift="token", target_cache="states", **training))[-1]
    assert [made.share for made in plain.usual] == [1, 1, 1, 1]
    assert [made.share for made in cached.usual] == pytest.approx([share, share, share, 1])
    before, after = (
        estimate(case(shift="token", **given, **training))[-1]
        for given in ({}, {"target_cache": "states"})
    )
    policy = before.work["policy"].total * before.stage.batches
    assert after.step - policy == pytest.approx(share * (before.step - policy))
    assert sum(after.moment) == sum(before.moment)


def test_views_beside_a_term_that_reads_predictions_are_asked_in_every_epoch():
    given = {"shift": "token", "kl_weight": 1, "retain_weight": 0.5, "max_steps": 16}
    before, after = (
        stages_of(case(**given, **cache))[-1].usual for cache in ({}, {"target_cache": "states"})
    )
    assert [made.share for made in after] == [1, 1, 1, 1]
    # But for the retained texts, which the reference is asked about before the first step.
    assert [made.rows for made in before] == [4, 2, 2, 4]
    assert [made.rows for made in after] == [2, 2, 2, 4]
    assert after[1:] == before[1:]


@pytest.mark.parametrize(
    "keys",
    [
        {"shift": "token"},
        {"shift": "mean", "retain_weight": 0.5},
        {"shift": "mean", "retain_weight": 0.5, "kl_weight": 1},
    ],
)
def test_the_disk_that_kept_states_take_is_reported(family_of, tmp_path, keys):
    from safetensors.torch import load_file
    from tiny_models import tiny_dataset
    from tiny_runs import alignment_trainer

    given = {"retain_weight": 0, "positions": "response", **keys}
    retained = [[3, 4, 5, 6]] * 3 if given["retain_weight"] else ()
    trainer = alignment_trainer(
        family_of("llama"),
        tmp_path,
        retain_texts=retained,
        target_cache=str(tmp_path / "states"),
        **given,
    )
    trainer.train()  # six steps of two: more than the eight responses
    files = (tmp_path / "states").rglob("*.safetensors")
    taken = sum(part.nbytes for path in files for part in load_file(path).values())

    made = recipe(target_cache="states", retain_rows=3, retain_tokens=4, **given)
    measured = [
        {name: len(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")}
        for row in tiny_dataset(4)
    ]
    lengths = replace(bounds(made), rows=tuple(measured))
    assert estimate(Case(made, decoder_of("llama"), Launch(), lengths, rows=4))[-1].disk == taken


# Lengths.


def test_the_longest_of_a_batch_is_what_drawing_all_batches_gives():
    given = (3, 4, 8)
    rows = tuple({"prompt": 0, "chosen": length} for length in given)
    drawn = [max(batch) for batch in itertools.product(given, repeat=3)]
    lengths = Lengths(rows, 10, 20, 0)
    expected = sum(drawn) / len(drawn)
    assert lengths.usual("prompt", ("chosen",), None, 3) == pytest.approx((expected, expected))
    assert lengths.longest("prompt", ("chosen",), 5) == Extent(5, 5)


def test_without_rows_the_limits_bound_the_lengths():
    lengths = bounds(recipe(max_prompt_length=100, max_length=300))
    assert lengths.longest("prompt", ("chosen",), None) == Extent(300, 299)
    assert lengths.longest("prompt", ("chosen",), 64) == Extent(164, 64)
    assert lengths.longest("positive_prompt", ("chosen",), 64).width > 200


def test_a_mean_given_by_hand_changes_the_work_and_not_the_memory():
    plain = case()
    shorter = replace(plain, lengths=bounds(plain.recipe, mean=50))
    for part, less in zip(estimate(plain), estimate(shorter), strict=True):
        assert less.flops < part.flops
        assert less.total == part.total


# Launch.


def accelerate_config(tmp_path, **keys):
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(keys))
    return str(path)


@pytest.mark.parametrize(
    ("keys", "engine"),
    [
        ({"distributed_type": "NO"}, Launch()),
        ({"distributed_type": "MULTI_GPU", "num_processes": 4}, Launch("ddp", 4)),
        (
            {
                "distributed_type": "DEEPSPEED",
                "num_processes": 2,
                "deepspeed_config": {"zero_stage": 3, "offload_param_device": "cpu"},
            },
            Launch("zero3", 2, offloads_parameters=True),
        ),
        (
            {"distributed_type": "DEEPSPEED", "num_processes": 2, "mixed_precision": "bf16"},
            Launch("zero2", 2, mixed_precision="bf16"),
        ),
        (
            {
                "distributed_type": "FSDP",
                "num_processes": 8,
                "fsdp_config": {"fsdp_version": 2},
            },
            Launch("fsdp2", 8),
        ),
    ],
)
def test_the_engine_is_that_of_the_accelerate_configuration(tmp_path, keys, engine):
    assert read_launch(accelerate_config(tmp_path, **keys)) == engine


def test_processes_of_the_command_line_come_before_those_of_the_file(tmp_path):
    path = accelerate_config(tmp_path, distributed_type="MULTI_GPU", num_processes=2)
    assert read_launch(path, 16).processes == 16
    assert read_launch(path, 1) == Launch()
    assert read_launch(None, 4) == Launch("ddp", 4)
    with pytest.raises(ValueError, match="--num_processes 0"):
        read_launch(path, 0)


def test_keys_of_the_recipe_choose_the_engine_where_no_configuration_is_named(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert read_launch(None, 2, {"deepspeed": str(path)}) == Launch("zero3", 2)


@pytest.mark.parametrize("content", ["- 1", "{", "distributed_type: TPU"])
def test_a_configuration_without_anything_known_is_refused(tmp_path, content):
    path = tmp_path / "given.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"given\.yaml: "):
        read_launch(str(path))


def test_an_unknown_name_is_refused_with_those_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--accelerate_config zero9: is not a file"):
        read_launch("zero9")
    Path("accelerate_configs").mkdir()
    Path("accelerate_configs/ddp.yaml").write_text("distributed_type: MULTI_GPU")
    with pytest.raises(ValueError, match="in accelerate_configs are ddp"):
        read_launch("zero9")


# Memory that stays.


def test_sharding_divides_what_it_shards():
    decoder = read_decoder(json.loads((SHAPES / "mistral-7b.json").read_text()), "mistral")
    formats = Formats(2, None, 4, 2, True, 8, "sdpa", True, False)

    def held(engine, **options):
        launch = Launch(engine, 8, **options)
        return resident(decoder, formats, launch, adapters=1000, trained=800)

    whole = held("ddp")
    assert whole == (2 * decoder.parameters + 4000, 2 * 4 * 800, 8 * 800)
    assert held("zero2") == (whole.weights, 4 * 800 / 8, 8 * 800 / 8)
    live = 2 * gathered_parameters(decoder, Launch("zero3", 8))
    assert held("zero3").weights == pytest.approx(whole.weights / 8 + live)
    assert held("zero3", offloads_parameters=True).weights == live


def test_beside_an_fsdp_base_adapters_are_complete_on_every_process():
    decoder = read_decoder(json.loads((SHAPES / "mistral-7b.json").read_text()), "mistral")
    formats, launch = Formats(2, None, 4, 2, True, 8, "sdpa", True, False), Launch("fsdp2", 8)
    held = resident(decoder, formats, launch, adapters=1000, trained=800)
    assert (
        held.weights == 2 * (decoder.parameters / 8 + gathered_parameters(decoder, launch)) + 4000
    )
    assert (held.gradients, held.optimiser) == (2 * 4 * 800, 8 * 800)


@pytest.mark.parametrize("key", ["fsdp_activation_checkpointing", "fsdp_offload_params"])
def test_what_is_not_read_of_fsdp_is_refused_with_what_to_do_instead(tmp_path, key):
    path = accelerate_config(tmp_path, distributed_type="FSDP", fsdp_config={key: True})
    with pytest.raises(ValueError, match=f"given.yaml: {key} is not read: (set|use) "):
        read_launch(path, 2)


def test_quantised_weights_leave_embeddings_and_norms_as_they_are():
    decoder = decoder_of("llama")
    formats = Formats(2, 4, 4, 2, True, 8, "sdpa", True, False)
    matrices = decoder.layers * decoder.linear_parameters
    assert resident(decoder, formats, Launch(), 0, 0).weights == pytest.approx(
        2 * (decoder.parameters - matrices) + matrices * (0.5 + 4 / 64)
    )


def test_deepspeed_casts_the_weights_where_others_autocast():
    made = case(bf16=True, launch=Launch("zero3", 2))
    assert formats_of(made, "alignment")[:5] == (2, None, 2, 2, False)
    made = case(bf16=True, launch=Launch("ddp", 2))
    assert formats_of(made, "alignment")[:5] == (4, None, 4, 4, True)


def large_case(processes=8, engine="ddp", **keys):
    made = recipe(use_cpu=False, dtype="bfloat16", bf16=True, per_device_train_batch_size=8, **keys)
    decoder = read_decoder(json.loads((SHAPES / "mistral-7b.json").read_text()), "mistral")
    return Case(made, decoder, Launch(engine, processes), bounds(made), 1000)


def test_every_saving_saves_what_it_is_for():
    given = large_case(shift="token", target_layers="0.3-0.7", max_steps=500)  # two epochs
    before = {part.stage.name: part for part in estimate(given)}
    after = {
        change.text: {part.stage.name: part for part in estimate(change.made(given))}
        for change in changes(given)
    }
    told = {change.kind: change.text for change in changes(given) if change.kind != "dtype"}
    assert after[told["depth"]]["alignment"].flops > before["alignment"].flops
    assert after[told["activations"]]["positive"].total < before["positive"].total
    assert after[told["activations"]]["positive"].flops > before["positive"].flops
    assert after[told["shift"]]["alignment"].flops < before["alignment"].flops
    assert after[told["cache"]]["alignment"].flops < before["alignment"].flops
    assert after[told["batch"]]["positive"].total < before["positive"].total
    assert after[told["batch"]]["positive"].flops == before["positive"].flops
    names = " ".join(after)
    for name in ("float32", "load_in_8bit", "load_in_4bit", "zero2", "zero3", "fsdp2"):
        assert name in names
    four = next(plan for told, plan in after.items() if "4bit" in told)
    assert four["alignment"].resident.weights < before["alignment"].resident.weights


def test_the_fewest_settings_that_fit_are_named():
    given = large_case()
    assert largest(estimate(given)) > 40 * GIB
    settings, most = fitting(given, 40 * GIB)
    assert [setting.text for setting in settings] == ["activation_checkpointing: true"]
    assert most <= 40 * GIB
    assert fitting(given, 0.1 * GIB) is None


# The commands.


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Make a working folder with a model's configuration, its tokenizer and pairs."""
    monkeypatch.chdir(tmp_path)
    _CONFIGS["llama"]().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    Path("pairs").mkdir()
    for split, count in (("train", 9), ("test", 3)):
        lines = [
            json.dumps({"prompt": "w2 w3", "chosen": "w4 " * (1 + row), "rejected": "w5 w6"})
            for row in range(count)
        ]
        Path(f"pairs/{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def recipe_file(**keys):
    given = {
        "model_name_or_path": "model",
        "dataset_name": "pairs",
        "output_dir": "out",
        "target_layers": [0, 2],
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "evaluation": {"judge": None},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(given | keys))
    return "recipe.yaml"


def lines_of(text):
    """Return {first words: the rest} of the plan's lines."""
    return {line[:18].strip(): line[18:].split() for line in text.splitlines()}


def test_plan_counts_the_rows_and_names_the_source_of_lengths(place, capsys):
    assert main(["plan", recipe_file()]) == 0
    printed = capsys.readouterr().out
    assert lines_of(printed)["steps"] == ["10", "10", "9", "18"]
    assert "rows     9 for training" in printed
    assert "upper bounds (max_prompt_length 256, max_length 768): `rahf data`" in printed
    for told in ("weights", "gradients", "optimiser", "activations", "frozen passes", "at most"):
        assert f"  {told}" in printed


def test_plan_reports_the_disk_of_kept_states_where_there_are_any(place, capsys):
    assert main(["plan", recipe_file()]) == 0
    assert "target_cache" not in capsys.readouterr().out.split("one setting changed")[0]
    assert main(["plan", recipe_file(target_cache="states")]) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("GiB of t")]
    assert float(row.split()[-1]) >= 0
    assert "?" not in row


def test_plan_loads_neither_torch_nor_transformers(place):
    script = (
        "import sys; from rahf.cli import main; main(['plan', 'recipe.yaml']); "
        "print([name for name in ('torch', 'transformers', 'peft', 'datasets', 'accelerate') "
        "if name in sys.modules])"
    )
    # The held-out prompts that are answered would be read: the model has few positions.
    recipe_file(evaluation={"held_out_prompts": 0})
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_prepare_measures_what_plan_reads(place, capsys):
    given = recipe_file()
    assert main(["prepare", given]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("train: 9 rows in ")
    assert "test: 3 rows in " in printed
    assert (place / "out" / "lengths.json").is_file()
    assert main(["plan", given]) == 0
    assert f"measured ({Path('out/lengths.json')})" in capsys.readouterr().out
    made = case_of(recipe_of(given), PlanOptions())[0]
    assert made.lengths.longest("prompt", ("chosen",), None).response == 10  # nine words and an end
    assert made.rows == 9
    assert main(["plan", given, "--max_length", "300"]) == 0
    assert "upper bounds" in capsys.readouterr().out


def test_prepare_names_the_same_cached_rows_again(place, capsys):
    parts = "[{path: pairs}, {path: pairs/test.jsonl, fraction: 0.5}]"
    single = ["--dataset_name", "pairs/train.jsonl"]
    for data in (single, ["--dataset_name", "null", "--datasets", parts]):
        given = ["prepare", recipe_file(), "--dataset_test_split", "null", *data]
        told = []
        for _ in range(2):
            assert main(given) == 0
            count, _, files = capsys.readouterr().out.splitlines()[0].partition(" s, ")
            told.append((count.split(" in ")[0], files))
        assert told[0] == told[1]
        assert told[0][1].startswith("in ")
        assert told[0][1] != "in memory"


def recipe_of(path, *overrides):
    from rahf.recipe.files import checked_recipe

    return checked_recipe(path, overrides)


def test_what_does_not_fit_is_refused_with_the_setting_that_makes_it(place, capsys):
    Path("config.json").write_text((SHAPES / "mistral-7b.json").read_text())
    arguments = ["plan", recipe_file(dtype="bfloat16", bf16=True), "--model_config", "config.json"]
    keys = ["--per_device_train_batch_size", "16", "--device_memory", "60"]
    assert main([*arguments, *keys]) == 2
    printed = capsys.readouterr()
    assert "at most" in printed.out
    assert printed.err.startswith("error: does not fit into --device_memory 60 GiB per device: pos")
    assert "it fits with activation_checkpointing: true (" in printed.err
    assert main([*arguments, *keys, "--activation_checkpointing", "true"]) == 0


def test_too_small_a_device_gets_more_processes(place, capsys):
    Path("config.json").write_text((SHAPES / "llama-3.1-405b.json").read_text())
    arguments = ["plan", recipe_file(dtype="bfloat16", bf16=True), "--model_config", "config.json"]
    assert main([*arguments, "--num_processes", "8", "--device_memory", "80"]) == 2
    assert "--accelerate_config fsdp2 --num_processes 16" in capsys.readouterr().err
    assert main([*arguments, "--device_memory", "0.5"]) == 2
    assert "no setting known here makes it fit" in capsys.readouterr().err


def test_rows_that_cannot_be_counted_are_asked_for(place, capsys):
    given = recipe_file(dataset_name="org/pairs")
    assert main(["plan", given]) == 0
    printed = capsys.readouterr().out
    assert "rows     not known: give --rows N" in printed
    assert lines_of(printed)["steps"][0] == "?"
    assert main(["plan", given, "--rows", "9"]) == 0
    assert lines_of(capsys.readouterr().out)["steps"] == ["10", "10", "9", "18"]


def test_rows_are_counted_in_every_kind_of_local_data(place):
    from datasets import Dataset

    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 5
    Dataset.from_list(rows).save_to_disk("saved")
    Dataset.from_list(rows).to_parquet("pairs.parquet")
    for name in ("saved", "pairs.parquet"):
        assert count_rows(recipe(dataset_name=name)) == 4  # one held out, as the run does
        assert count_rows(recipe(dataset_name=name, test_share=0)) == 5
    parts = [{"path": "pairs", "fraction": 0.5}, {"path": "saved"}]
    assert count_rows(recipe(dataset_name=None, datasets=parts)) == 4 + 5 - 1
    assert count_rows(recipe(dataset_name="org/pairs")) is None


def test_a_model_of_the_hub_that_cannot_be_had_needs_its_configuration(place, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    assert main(["plan", recipe_file(model_name_or_path="org/model")]) == 2
    assert "(no route): give its config.json with --model_config FILE" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prepare", "data"])
def test_measured_lengths_of_other_settings_are_not_read(place, command):
    assert read_measured(recipe_of(recipe_file())) is None
    main([command, "recipe.yaml"])
    assert read_measured(recipe_of("recipe.yaml")) is not None
    assert read_measured(recipe_of("recipe.yaml", "--alpha", "3")) is not None
    assert read_measured(recipe_of("recipe.yaml", "--max_prompt_length", "99")) is None
    pairs = Path("pairs/train.jsonl")
    stat, text = pairs.stat(), pairs.read_text()
    for changed in (f"{text}\n" * 2, text.replace("w3", "w4", 1)):
        pairs.write_text(changed)
        os.utime(pairs, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert read_measured(recipe_of("recipe.yaml")) is None


def test_the_shipped_recipes_can_be_planned(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, shape in (("mistral-7b", "mistral-7b"), ("llama-3.1-8b", "mistral-7b")):
        for path in sorted((ROOT / "recipes" / name).glob("*.yaml")):
            given = ["plan", str(path), "--model_config", str(SHAPES / f"{shape}.json")]
            assert main([*given, "--rows", "60000"]) == 0
    assert "at most" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        ("--stage=positive", "--per_device_train_batch_size=8"),
        # Rows enough that the memory of the process itself stays small beside the tensors.
        ("--stage=positive", "--activation_checkpointing=true", "--per_device_train_batch_size=20"),
        (
            *("--stage=alignment", "--method=lorra", "--max_response_tokens=200"),
            "--per_device_train_batch_size=8",
        ),
    ],
)
@pytest.mark.timeout(900)  # processes of its own, on a machine that may be busy
def test_memory_is_within_a_fifth_of_what_is_measured(place, keys):
    """Measure a random Llama that is narrow under many tokens, so that tensors outweigh the process
    by hundreds of MiB and a step takes a second.
    """
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained("model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["yes", "no"])  # the words that the script writes
    tokenizer.save_pretrained("model")
    script = ROOT / "scripts/benchmarks/memory.py"
    # Up to nearly the top: weights of blocks that a CPU run never reads are not resident.
    given = {"shift": "token", "target_layers": "0.6-0.9", "dataset_test_split": None}
    given["instructions"] = {"positive": "yes yes", "negative": "no no"}
    keys = [recipe_file(**given), *keys]
    keys += ["--tokens=256", "--tight"]
    command = [sys.executable, script, *keys]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ratio = float(done.stdout.split("ratio ")[1].split()[0])
    assert 0.8 <= ratio <= 1.2, done.stdout


@pytest.mark.parametrize(("together", "rows"), [(False, 1), (True, 2)])
def test_smaller_batches_are_never_advised_to_tear_a_pair_apart(together, rows):
    keys = {"pairs_together": together, "dpo_weight": float(together)}
    told = [each.text for each in changes(case(per_device_train_batch_size=8, **keys))]
    assert f"per_device_train_batch_size: {rows}, accumulating the rest" in told


def test_rows_whose_predictions_a_term_reads_are_planned_whole():
    given = {"shift": "token", "retain_weight": 0.0, "max_response_tokens": 2}
    short, whole = (
        {made.name: made for made in stages_of(case(**given, sft_weight=weight))[-1].usual}
        for weight in (0.0, 1.0)
    )
    assert whole["policy"].width > short["policy"].width
    assert whole["policy"].scored > 2
    for name in short:  # what is aligned stays, and views with rows of their own
        assert whole[name].recorded == short[name].recorded
