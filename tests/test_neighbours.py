"""Circuit breakers, RMU and RepBend: formulas by hand, what training does, what is refused."""

import math
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import pytest
import torch
from matrices import slow_unless
from reference import neighbours as hand
from reference import objective as loops
from tiny_models import D_MODEL, EOS, lora, randomize, tiny_pairs
from tiny_runs import (
    QUIET,
    KillAfter,
    KilledError,
    alignment_trainer,
    assert_same_weights,
    largest_difference,
    policy_weights,
)

from rahf.alignment import build_alignment
from rahf.data.contrast import ContrastCollator, Responses
from rahf.directions.vectors import Directions
from rahf.models.adapters import attach_policy, trainable
from rahf.models.packing import use_packed_attention
from rahf.objective import Target, dissimilarity, random_units, row_loss
from rahf.recipe.layers import resolve_layers
from rahf.recipe.method_options import MethodOptions
from rahf.recipe.methods import METHODS as TABLE
from rahf.recipe.methods import preset
from rahf.recipe.recipe import load_recipe, recipe_from_dict
from rahf.terms import DISTANCES, Term, scored_kinds, terms_of
from rahf.trainer_config import RAHFConfig

LAYERS, SEED = (0, 2), 5
METHODS = ("circuit_breakers", "rmu", "repbend")
RETAINED = [[3, 4, 5, 6], [7, 8], [9, 10, 11]]
SMALL = {
    "circuit_breakers": {"rejected_weight": 3.0, "chosen_weight": 0.7, "retain_weight": 0.4},
    "rmu": {"alpha": 1.5, "chosen_weight": 0.6, "retain_weight": 0.3, "distance": "squared_l2"},
    "repbend": {"rejected_weight": 0.4, "chosen_weight": 0.6, "similarity_weight": 0.8},
}
"""Weights of a like size, so that no term hides another."""

KL = {"kl_weight": 0.5, "kl_rows": "retain", "retain_weight": 0.2}


def options_of(method, **given):
    return MethodOptions(method=method, **{"layer_scale": "none", **SMALL[method], **given})


def alignment_of(family, options, packed=False):
    """Return an alignment whose policy has moved a little from where it starts."""
    options.target_layers = list(LAYERS)
    alignment = build_alignment(family.load_base(), options, lora(), {}, seed=SEED)
    randomize(alignment.model, "default", seed=9, scale=0.1)
    assert not packed or use_packed_attention(alignment.model.get_base_model())
    return alignment


def items_of(options, retain=(), pairs=2):
    dataset = Responses(tiny_pairs(pairs), options.response_source, retain)
    return [dataset[index] for index in range(len(dataset))]


def batch_of(items, options, **collating):
    tail, cut, scored = options.tail_tokens, options.max_response_tokens, terms_of(options)
    collating["scored"] = scored_kinds(scored)
    return ContrastCollator(EOS, options.positions, tail, cut, **collating)(items)


class ByHand:
    """Loss of each response of a batch: models of their own, one unpadded row at a time."""

    def __init__(self, family, alignment, options):
        self.options, self.base = options, family.load_base()
        self.policy = attach_policy(family.load_base(), lora(), range(LAYERS[-1] + 1)).eval()
        weights = dict(alignment.model.named_parameters())
        for name, parameter in self.policy.named_parameters():
            if ".default." in name:
                parameter.data = weights[name].data.clone()

    def states(self, item):
        ids = item["prompt_ids"] + item["response_ids"]
        positions = loops.aligned_positions(
            item["prompt_ids"],
            item["response_ids"],
            self.options.positions,
            self.options.tail_tokens,
        )
        return tuple(
            loops.at(loops.block_states(model, ids, LAYERS), positions)
            for model in (self.policy, self.base)
        )

    def led_away(self, policy, reference, units):
        """Return the term of a rejected response."""
        if self.options.method == "circuit_breakers":
            return hand.breaking(policy, reference)
        if self.options.method == "repbend":
            return -hand.distance(policy, reference, units, squared=False)
        drawn = torch.rand(3, D_MODEL, generator=torch.Generator().manual_seed(SEED)).tolist()
        target = {}
        for layer in LAYERS:
            norm = math.sqrt(loops.squared_norm(drawn[layer]))
            target[layer] = [self.options.alpha * value / norm for value in drawn[layer]]
        target = hand.everywhere(target, policy)
        return hand.distance(policy, target, units, self.options.distance == "squared_l2")

    def losses(self, items, elapsed=1.0):
        options, found = self.options, []
        crossing = options.weights_over_time == "crossing"
        falling, rising = (1 - elapsed / 2, elapsed / 2) if crossing else (1.0, 1.0)
        share = 0.5 if options.response_source == "both" else 1.0
        squared = options.distance == "squared_l2"
        states = [self.states(item) for item in items]
        for index, (item, (policy, reference)) in enumerate(zip(items, states, strict=True)):
            nothing = loops.difference(reference, reference)
            units = loops.layer_units(reference, nothing, 1.0, options.layer_scale)
            if item["chosen"]:
                near = hand.distance(policy, reference, units, squared)
                loss = rising * options.chosen_weight * near / share
            else:
                away = self.led_away(policy, reference, units)
                others = [
                    states[other][0]
                    for other in range(len(items))
                    if other != index and not items[other]["chosen"]
                ]
                loss = falling * options.rejected_weight * away / share
                loss += options.similarity_weight * hand.unlike(policy, others) / share
            if "retain_ids" in item:
                loss += self.retained(item["retain_ids"], units, squared, rising)
            found.append(loss)
        return found

    def retained(self, text, units, squared, rising):
        policy, reference = (
            loops.block_states(model, text, LAYERS) for model in (self.policy, self.base)
        )
        near = hand.distance(policy, reference, units, squared)
        loss = rising * self.options.retain_weight * near
        if self.options.kl_weight:
            warm = 2.0 if self.options.method == "repbend" else 1.0
            divergence = loops.kl(
                loops.log_probabilities(self.base, text, warm),
                loops.log_probabilities(self.policy, text, warm),
                range(1, len(text)),
            )
            loss += self.options.kl_weight * warm**2 * divergence
        return loss


# The pure functions.


def test_the_cosine_to_the_target_counts_where_it_is_positive():
    # One row of three tokens: along the target, across it, against it.
    target = Target(torch.tensor([[[2.0, 0.0]] * 3]), torch.zeros(1, 3, 2), torch.full((1, 1), 7.0))
    hidden = torch.tensor([[[5.0, 0.0], [0.0, 3.0], [-4.0, 0.0]]])
    loss = row_loss(hidden, target, torch.tensor([0, 0, 0]), "relu_cosine")
    assert loss.tolist() == pytest.approx([1 / 3])


def test_away_is_the_distance_with_its_sign_turned():
    target = Target(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.full((1, 1), 2.0))
    hidden = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    assert row_loss(hidden, target, torch.tensor([0, 0]), "away").tolist() == [-2.5 / 2]


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [("constant", [4, 4, 4]), ("falling", [4, 3, 2]), ("rising", [0, 1, 2])],
)
def test_weights_over_time_by_hand(schedule, weights):
    term = Term("name", "rejected", DISTANCES["l2"], 4.0, schedule)
    assert [term.weight_at(elapsed) for elapsed in (0.0, 0.5, 1.0)] == weights


def test_random_vectors_are_of_length_one_and_follow_from_the_seed_and_the_layer_alone():
    units = random_units((1, 4), 8, seed=3)
    assert torch.allclose(units.norm(dim=-1), torch.ones(2))
    assert (units >= 0).all()  # drawn from [0, 1), as published
    assert torch.equal(units[1:], random_units((4,), 8, seed=3))
    assert not torch.allclose(units, random_units((1, 4), 8, seed=4))
    assert not torch.allclose(units[0], units[1])


def test_dissimilarity_by_hand():
    # Rows 0, 1 and 3 count: 0 and 1 are at right angles, 3 is against 0.
    states = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-1.0, 0.0]]])
    among = torch.tensor([True, True, False, True])
    assert dissimilarity(states, among).tolist() == pytest.approx([1.5, 1.0, 0.0, 1.5])
    alone = torch.tensor([False, True, False, False])
    assert dissimilarity(states, alone).tolist() == [0.0] * 4


# The complete alignment.


def check_by_hand(family, options, retain=(), elapsed=1.0, **collating):
    items = items_of(options, retain)
    alignment = alignment_of(family, options, collating.get("packed", False))
    output = alignment(alignment.model, batch_of(items, options, **collating), elapsed)
    expected = ByHand(family, alignment, options).losses(items, elapsed)
    assert output.loss.tolist() == pytest.approx(expected, rel=2e-4, abs=1e-6)
    return output


@pytest.mark.parametrize(
    ("method", "positions", "packed"),
    slow_unless(
        lambda _, positions, packed: packed == (positions == "response_and_tail"),
        product(METHODS, ("response", "response_and_tail"), (False, True)),
    ),
)
def test_the_loss_of_every_neighbour_equals_the_loops(family, method, positions, packed):
    output = check_by_hand(family, options_of(method, positions=positions), packed=packed)
    similar = {"similarity"} if method == "repbend" else set()
    assert set(output.terms) == {"rejected", "chosen"} | similar


@pytest.mark.parametrize(
    ("method", "layer_scale", "packed"),
    slow_unless(
        lambda _, layer_scale, packed: packed == (layer_scale == "none"),
        product(METHODS, ("none", "rms"), (False, True)),
    ),
)
def test_the_loss_with_retained_texts_and_their_kl_equals_the_loops(
    family, method, layer_scale, packed
):
    options = options_of(method, layer_scale=layer_scale, **KL)
    output = check_by_hand(family, options, RETAINED, packed=packed)
    assert {"rejected", "chosen", "retain", "kl"} <= set(output.terms)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_rejected_responses_alone_equals_the_loops(family, method):
    options = options_of(method, response_source="rejected", chosen_weight=0.0)
    output = check_by_hand(family, options, RETAINED)
    assert "chosen" not in output.terms


@pytest.mark.parametrize(
    ("method", "elapsed"),
    slow_unless(lambda _, elapsed: elapsed == 0.25, product(METHODS, (0.0, 0.25, 1.0))),
)
def test_the_loss_with_crossing_weights_equals_the_loops(family, method, elapsed):
    options = options_of(method, weights_over_time="crossing", retain_weight=0.4)
    check_by_hand(family, options, RETAINED, elapsed)


@pytest.mark.parametrize("method", ["circuit_breakers", "rmu"])
def test_the_loss_depends_neither_on_padding_nor_on_the_split_of_the_batch(family, method):
    options = options_of(method)
    items, alignment = items_of(options, RETAINED, pairs=3), alignment_of(family, options)
    whole = alignment(alignment.model, batch_of(items, options)).loss
    for side in ("left", "right"):
        padded = batch_of(items, options, padding_side=side, width=25)
        assert torch.allclose(alignment(alignment.model, padded).loss, whole, rtol=1e-4)
    singles = [alignment(alignment.model, batch_of([item], options)).loss for item in items]
    assert torch.allclose(torch.cat(singles), whole, rtol=1e-4)


def test_the_mean_of_a_term_is_that_over_its_own_rows(family):
    both, rejected = (
        options_of("rmu", response_source=source, chosen_weight=0.0)
        for source in ("both", "rejected")
    )
    alignment = alignment_of(family, both)
    over_both = alignment(alignment.model, batch_of(items_of(both), both)).terms["rejected"]
    alignment = replace(alignment, options=rejected)
    batch = batch_of(items_of(rejected), rejected)
    over_rejected = alignment(alignment.model, batch).terms["rejected"]
    assert over_both.mean().item() == pytest.approx(over_rejected.mean().item(), rel=1e-5)


def test_rmu_moves_only_rejected_responses(family):
    options = options_of("rmu")
    items, alignment = items_of(options, RETAINED), alignment_of(family, options)
    batch = batch_of(items, options)
    asked = alignment.target(batch, alignment.read_views(batch))
    owner = batch["reference"]["aligned_owner"]
    responses = len(items)
    rejected = (owner < responses) & (owner % 2 == 1)
    assert torch.equal(asked.move[:, ~rejected], torch.zeros_like(asked.move[:, ~rejected]))
    target = (asked.reference + asked.move)[:, rejected]
    units = 1.5 * random_units(LAYERS, D_MODEL, SEED).unsqueeze(1)
    assert torch.allclose(target, units.expand_as(target), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_neither_teacher_nor_head_is_asked(family, method):
    options = options_of(method)
    alignment, passes, columns = alignment_of(family, options), [], []
    base = alignment.model.get_base_model()
    base.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    base.model.layers[3].register_forward_hook(lambda *_: passes.append("above"))
    base.lm_head.register_forward_hook(lambda _, inputs, __: columns.append(inputs[0].shape[1]))
    alignment(alignment.model, batch_of(items_of(options), options))
    assert passes == [1, 1]  # reference and policy
    assert set(columns) == {0}


def test_without_its_similarity_term_repbend_would_not_begin(family):
    """Show why this is refused: at the reference every other term has no gradient."""
    options = options_of("repbend", **KL)
    options.similarity_weight = 0.0
    alignment = alignment_of(family, options)
    items = items_of(options, RETAINED)
    randomize(alignment.model, "default", seed=9, scale=0.1)
    for name, parameter in alignment.model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    for weight in (0.0, 0.5):
        options.similarity_weight = weight
        loss = alignment(alignment.model, batch_of(items, options)).loss.sum()
        gradients = torch.autograd.grad(loss, trainable(alignment.model))
        largest = max(gradient.abs().max().item() for gradient in gradients)
        assert (largest > 1e-3) == (weight > 0)


def test_directions_are_refused(family):
    stored = Directions(LAYERS, torch.ones(2, D_MODEL))
    with pytest.raises(ValueError, match="'rmu' reads no directions"):
        build_alignment(family.load_base(), options_of("rmu"), lora(), {}, stored)


def test_the_methods_of_rahf_align_all_responses_at_one_weight():
    options = MethodOptions(retain_weight=0.3, dpo_weight=0.0)
    assert terms_of(options) == (
        Term("align", "responses", DISTANCES["l2"], 1.0, "constant"),
        Term("retain", "retained", DISTANCES["l2"], 0.3, "constant"),
    )


# Training.


def trainer_of(family, folder, method, **options):
    # The general defaults, not those of the method.
    general = {spec.name: getattr(MethodOptions(), spec.name) for spec in fields(MethodOptions)}
    del general["target_layers"]
    given = {
        **general,
        "method": method,
        "layer_scale": "none",
        "positions": "response",
        "shift": "token",
        "retain_weight": 0.0,
        "retain_texts": RETAINED,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        **SMALL[method],
        **options,
    }
    return alignment_trainer(family, folder, **given)


def terms_before_and_after(trainer):
    """Return the first step, and the mean over the last ten of sixty."""
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 60
    last = {key: sum(line[key] for line in lines[-10:]) / 10 for key in lines[-1]}
    return lines[0], last


LONGER = {"max_steps": 60, "pairs_together": True, "peft_config": lora(8)}


def test_rmu_takes_rejected_responses_to_the_vector_and_leaves_the_rest(family, tmp_path):
    options = {"alpha": 6.0, "chosen_weight": 2.0, "retain_weight": 2.0}
    trainer = trainer_of(family, tmp_path, "rmu", **LONGER, **options)
    first, last = terms_before_and_after(trainer)
    assert first["repr/reached"] == 0
    assert last["repr/reached"] > 0.3
    assert last["repr/cosine"] > 0.5
    assert last["repr/rejected"] < 0.6 * first["repr/rejected"]
    # What stays has moved by a small part of what was asked of the others.
    assert 0 < last["repr/chosen"] < 0.1 * first["repr/rejected"]
    assert 0 < last["repr/retain"] < 0.1 * first["repr/rejected"]


def test_circuit_breakers_turn_rejected_states_out_of_their_direction(family, tmp_path):
    weights = {"rejected_weight": 2.0, "chosen_weight": 4.0, "retain_weight": 4.0}
    options = {"layer_scale": "rms", "weights_over_time": "crossing", **weights}
    trainer = trainer_of(family, tmp_path, "circuit_breakers", **LONGER, **options)
    first, last = terms_before_and_after(trainer)
    assert first["repr/rejected"] == pytest.approx(1.0, abs=1e-5)
    assert last["repr/rejected"] < 0.3
    # At right angles to where it was, a state of the same length is 1.4 units away.
    assert last["repr/chosen"] < 0.6
    assert last["repr/retain"] < 0.3
    assert "repr/reached" not in last  # no shift was asked for


def test_repbend_takes_rejected_states_further_than_others(family, tmp_path):
    trainer = trainer_of(family, tmp_path, "repbend", **LONGER, **KL)
    first, last = terms_before_and_after(trainer)
    assert first["repr/rejected"] == 0
    assert -last["repr/rejected"] > 1.5 * last["repr/chosen"] > 0
    assert -last["repr/rejected"] > 1.5 * last["repr/retain"]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_weights_cross_with_the_optimiser_steps_of_the_training(family, tmp_path, accumulated):
    weights = {"rejected_weight": 3.0, "chosen_weight": 2.0, "retain_weight": 1.0}
    trainer = trainer_of(
        family,
        tmp_path,
        "circuit_breakers",
        weights_over_time="crossing",
        gradient_accumulation_steps=accumulated,
        **weights,
    )
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 6
    for line in lines:
        elapsed = line["step"] / 6
        asked = 3.0 * (1 - elapsed / 2) * line["repr/rejected"]
        asked += elapsed / 2 * (2.0 * line["repr/chosen"] + line["repr/retain"])
        assert line["loss"] == pytest.approx(asked, rel=1e-4)


def test_accumulated_batches_train_as_one_whatever_the_time(family, tmp_path):
    options = {"weights_over_time": "crossing", "pairs_together": True, "learning_rate": 1e-3}
    once = trainer_of(family, tmp_path / "once", "circuit_breakers", **options)
    parts = trainer_of(
        family,
        tmp_path / "parts",
        "circuit_breakers",
        **options,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    for trainer in (once, parts):
        randomize(trainer.alignment.model, "default", seed=9, scale=0.1)
        trainer.train()
    assert largest_difference(policy_weights(once), policy_weights(parts)) < 1e-4


# RMU draws its vectors, which have to be the same again.
@pytest.mark.parametrize("method", slow_unless(lambda method: method == "rmu", zip(METHODS)))
def test_a_killed_run_goes_on_as_if_it_had_not_been(family, tmp_path, method):
    options = {"weights_over_time": "crossing", "save_strategy": "steps"}
    whole = trainer_of(family, tmp_path / "whole", method, **options)
    whole.train()
    killed = trainer_of(family, tmp_path / "killed", method, callbacks=[KillAfter(4)], **options)
    with pytest.raises(KilledError):
        killed.train()
    again = trainer_of(family, tmp_path / "killed", method, **options)
    again.train(resume_from_checkpoint=again.last_checkpoint())
    assert_same_weights(policy_weights(again), policy_weights(whole))


def test_held_out_pairs_are_measured_at_the_last_weights_whenever_it_is_done(family, tmp_path):
    options = {"weights_over_time": "crossing", "eval_pairs": 3, "per_device_eval_batch_size": 6}
    trainer = trainer_of(family, tmp_path, "circuit_breakers", **options)
    for metrics in (trainer.evaluate(), trainer.train() and trainer.evaluate()):
        asked = 1.5 * metrics["eval_repr/rejected"]
        asked += 0.35 * metrics["eval_repr/chosen"] + 0.2 * metrics["eval_repr/retain"]
        assert metrics["eval_loss"] == pytest.approx(asked, rel=1e-4)


# Presets.


def recipe(**keys):
    given = {"model_name_or_path": "m", "dataset_name": "pairs", "output_dir": "out"}
    return recipe_from_dict(given | keys)


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_that_names_a_method_begins_with_its_published_values(method):
    made = recipe(method=method)
    whole, published = made.as_dict(), TABLE[method].published
    assert {key: whole[key] for key in published} == published
    assert made.stages == ("alignment", "evaluation")
    assert recipe_from_dict(whole).as_dict() == whole


def test_the_values_of_a_recipe_hold_against_the_preset():
    made = recipe(method="circuit_breakers", max_steps=8, target_layers=[3], rejected_weight=2)
    assert (made.training["max_steps"], made.method.target_layers) == (8, [3])
    assert made.method.rejected_weight == 2
    assert made.method.weights_over_time == "crossing"


def test_epochs_take_the_place_of_published_steps():
    assert "max_steps" not in recipe(method="rmu", num_train_epochs=2).training


def test_the_published_layers_are_named_in_models_of_the_published_depth():
    found = {
        method: resolve_layers(TABLE[method].published["target_layers"], 32) for method in METHODS
    }
    assert found == {
        "circuit_breakers": (9, 19),
        "rmu": (7,),
        "repbend": tuple(range(19, 30)),
    }


def test_other_methods_have_their_own_defaults_and_no_others():
    own = MethodOptions(method="lorra", **TABLE["lorra"].defaults)
    assert recipe(method="lorra").method == own
    assert recipe(method="dpo_shift").method == MethodOptions(method="dpo_shift")


@pytest.mark.parametrize("method", METHODS)
def test_a_preset_is_a_configuration_of_the_trainer(tmp_path, method):
    args = RAHFConfig(str(tmp_path), **{**preset(method), "max_steps": 2}, **QUIET)
    assert args.method == method
    assert args.layer_scale == "none"


@pytest.mark.parametrize("method", ["dual", "scit"])
def test_the_published_settings_of_rahf_are_those_of_its_recipe(tmp_path, method):
    given = preset(method)
    path = Path(__file__).parents[1] / "recipes/mistral-7b" / f"{method}.yaml"
    published = load_recipe(path).as_dict()
    layers = (resolve_layers(keys.pop("target_layers"), 32) for keys in (given, published))
    assert len(set(layers)) == 1
    teachers = given.pop("teacher_args")
    assert given == {key: published[key] for key in given}
    assert teachers.pop("max_steps") == -1  # those of the alignment are not taken over
    assert teachers == {key: published["teachers"][key] for key in teachers}
    args = RAHFConfig(str(tmp_path), **preset(method), **QUIET)
    assert args.retain_weight == args.sft_weight == 0


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"per_device_train_batch_size": 2}, "set it to at least 4"),
        ({"per_device_train_batch_size": 1, "pairs_together": False}, "set it to at least 2"),
        ({"per_device_train_batch_size": "few"}, "'few' is not a whole number"),
        ({"target_layers": "auto"}, "target_layers: auto is chosen for a shift"),
        ({"teachers": {"positive": "x"}}, "teachers.positive: not read by method repbend"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        recipe(method="repbend", **keys)


def test_a_batch_too_small_for_similarity_is_refused_by_the_trainer_too():
    with pytest.raises(ValueError, match="per_device_train_batch_size: 2 is too small"):
        RAHFConfig("out", **{**preset("repbend"), "per_device_train_batch_size": 2}, **QUIET)
