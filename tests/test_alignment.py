from dataclasses import replace
from itertools import product

import pytest
import torch
from matrices import slow_unless
from reference import objective as loops
from tiny_models import D_MODEL, DEPTH, EOS, Family, lora, randomize, tiny_pairs

from rahf.alignment import Alignment
from rahf.data.contrast import ContrastCollator, Responses
from rahf.directions.protected import load_protected
from rahf.directions.vectors import Directions
from rahf.models.adapters import add_teachers, attach_policy, trainable
from rahf.models.packing import use_packed_attention
from rahf.recipe.method_options import MethodOptions
from rahf.recipe.methods import METHODS as TABLE
from rahf.terms import SHARE, scored_kinds, terms_of
from rahf.training.preparation import mean_shift
from rahf.views import FrozenViews, views_of

LAYERS = (0, 2)
METHODS = [
    ("dual", "base"),
    ("dual", "positive"),
    ("scit", "base"),
    ("scit", "contrast"),
    ("dpo_shift", "base"),
    ("dpo_shift", "preferred"),
    ("lorra", "base"),
    ("direction", "base"),
]
POSITIONS, KL_ROWS = ("response", "response_and_tail"), ("responses", "retain")
RETAINED = [[3, 4, 5, 6], [7, 8], [9, 10, 11]]


def method_options(method="dual", reference="base", **options):
    """Return every key at its general default but the given ones, whatever the method's own."""
    stored = {"directions": "stored"} if method == "direction" else {}
    return MethodOptions(method=method, reference=reference, **{**stored, **options})


def stored_directions():
    vectors = torch.randn(len(LAYERS), D_MODEL, generator=torch.Generator().manual_seed(8))
    return Directions(LAYERS, vectors)


def alignment_of(
    family: Family, options: MethodOptions, teachers=None, packed=False, **adapter
) -> Alignment:
    """Return an alignment whose policy has moved a little from where it starts."""
    views = TABLE[options.method].views(options.reference)
    teachers = teachers or {name: family.adapters[name] for name in views.teachers()}
    model = attach_policy(family.load_base(), lora(**adapter), range(LAYERS[-1] + 1))
    full = add_teachers(model, teachers, LAYERS[-1] + 1)
    randomize(model, "default", seed=9, scale=0.1)
    assert not packed or use_packed_attention(model.get_base_model())
    stored = stored_directions().vectors if options.method == "direction" else None
    basis = load_protected(options.protect, LAYERS, D_MODEL) if options.protect else None
    made = Alignment(FrozenViews(model, views, LAYERS, full), options, protected=basis)
    return made if stored is None else replace(made, directions=made.without_protected(stored))


def batch_of(pairs, options, retain=(), **collating):
    dataset = Responses(pairs, options.response_source, retain)
    items = [dataset[index] for index in range(len(dataset))]
    return collator_of(options, **collating)(items)


def collator_of(options, **collating):
    return ContrastCollator(
        EOS,
        options.positions,
        options.tail_tokens,
        options.max_response_tokens,
        scored=scored_kinds(terms_of(options)),
        **collating,
    )


def policy_alone(family, alignment):
    """Return the policy as a model of its own, apart from the model with all adapters."""
    model = attach_policy(family.load_base(), lora(), range(LAYERS[-1] + 1))
    weights = dict(alignment.model.named_parameters())
    for name, parameter in model.named_parameters():
        if ".default." in name:
            parameter.data = weights[name].data.clone()
    return model.eval()


class ByLoops:
    """Loss of a response from models of their own, one unpadded row at a time."""

    def __init__(self, family, alignment, options):
        self.options = options
        self.policy = policy_alone(family, alignment)
        views = TABLE[options.method].views(options.reference)
        self.views = views
        self.models = {view.teacher: family.load(view.teacher) for view in views if view}

    def states(self, model, prompt, response):
        positions = loops.aligned_positions(
            prompt, response, self.options.positions, self.options.tail_tokens
        )
        return loops.at(loops.block_states(model, prompt + response, LAYERS), positions)

    def view_states(self, view, item, response):
        prompt = "prompt_ids" if view.rows == "reference" else f"{view.rows}_prompt_ids"
        return self.states(self.models[view.teacher], item[prompt], response)

    def shift(self, item, response, tokens):
        if self.options.method == "direction":
            vectors = stored_directions().vectors.tolist()
            return {layer: [vector] * tokens for layer, vector in zip(LAYERS, vectors, strict=True)}
        return loops.difference(
            self.view_states(self.views.positive, item, response),
            self.view_states(self.views.negative, item, response),
        )

    def protected(self):
        stored = [Directions.load(folder) for folder in self.options.protect]
        vectors = {
            layer: [each.select((layer,))[0].tolist() for each in stored] for layer in LAYERS
        }
        return {layer: loops.orthonormal(of_layer) for layer, of_layer in vectors.items()}

    def loss(self, item):
        options, prompt = self.options, item["prompt_ids"]
        response = item["response_ids"][: options.max_response_tokens]
        reference_model = self.models[self.views.reference.teacher]
        reference = self.states(reference_model, prompt, response)
        policy = self.states(self.policy, prompt, response)
        shift = self.shift(item, response, len(policy[LAYERS[0]]))
        kept = self.protected()
        shift = {layer: loops.without(shift[layer], kept.get(layer, ())) for layer in shift}
        units = loops.layer_units(reference, shift, options.alpha, options.layer_scale)
        total = loops.align_loss(policy, reference, shift, options.alpha, units, options.distance)

        if options.protect:
            protection = loops.protect_loss(policy, reference, kept, units)
            total += options.protect_weight * protection
        # Terms that read predictions read complete responses.
        whole = ids = prompt + item["response_ids"]
        predicted = range(len(prompt), len(ids))
        if "retain_ids" in item:
            text = item["retain_ids"]
            total += options.retain_weight * loops.retain_loss(
                loops.block_states(self.policy, text, LAYERS),
                loops.block_states(reference_model, text, LAYERS),
                units,
                options.distance,
            )
            if options.kl_rows == "retain":
                ids, predicted = text, range(1, len(text))
        if options.kl_weight:
            total += options.kl_weight * loops.kl(
                loops.log_probabilities(reference_model, ids),
                loops.log_probabilities(self.policy, ids),
                predicted,
            )
        if options.sft_weight and item["chosen"]:
            share = {"chosen": 1.0, "both": 0.5, "random": 0.5}[options.response_source]
            total += (options.sft_weight / share) * loops.cross_entropy(
                loops.log_probabilities(self.policy, whole),
                whole,
                range(len(prompt), len(whole)),
            )
        return total

    def preference(self, chosen, rejected):
        """Return the DPO term of a pair, its weight included."""
        options, ratios = self.options, []
        reference_model = self.models[self.views.reference.teacher]
        for item in (chosen, rejected):
            prompt = item["prompt_ids"]
            ids = prompt + item["response_ids"]
            predicted = range(len(prompt), len(ids))
            own, base = (
                -len(predicted)
                * loops.cross_entropy(loops.log_probabilities(model, ids), ids, predicted)
                for model in (self.policy, reference_model)
            )
            ratios.append(own - base)
        return options.dpo_weight * loops.dpo(*ratios, options.dpo_beta)


def check_against_loops(family, options, retain=(), **collating):
    pairs = tiny_pairs(2)
    alignment = alignment_of(family, options, packed=collating.get("packed", False))
    output = alignment(alignment.model, batch_of(pairs, options, retain, **collating))
    dataset = Responses(pairs, options.response_source, retain)
    by_loops = ByLoops(family, alignment, options)
    expected = [by_loops.loss(dataset[index]) for index in range(len(dataset))]
    if options.dpo_weight:
        for index in range(0, len(dataset), 2):
            of_pair = by_loops.preference(dataset[index], dataset[index + 1])
            expected[index] += of_pair
            expected[index + 1] += of_pair
    assert output.loss.tolist() == pytest.approx(expected, rel=2e-4)
    return output


@pytest.mark.parametrize(
    ("positions", "view"),
    slow_unless(
        lambda positions, view: positions == "response_and_tail" or view == METHODS[0],
        product(POSITIONS, METHODS),
    ),
)
def test_the_loss_of_every_method_and_reference_equals_the_loops(family, positions, view):
    method, reference = view
    check_against_loops(family, method_options(method, reference, positions=positions))


@pytest.mark.parametrize("distance", ["l2", "squared_l2"])
@pytest.mark.parametrize("layer_scale", ["none", "rms", "shift"])
def test_the_loss_of_every_distance_and_scale_equals_the_loops(family, distance, layer_scale):
    options = method_options(distance=distance, layer_scale=layer_scale, alpha=-1.5)
    check_against_loops(family, options)


@pytest.mark.parametrize(
    ("layer_scale", "positions"),
    slow_unless(
        lambda layer_scale, positions: positions == "response_and_tail" or layer_scale == "shift",
        product(("none", "rms", "shift"), POSITIONS),
    ),
)
def test_the_loss_with_retained_texts_equals_the_loops(family, layer_scale, positions):
    options = method_options(layer_scale=layer_scale, positions=positions, retain_weight=0.7)
    output = check_against_loops(family, options, RETAINED)
    assert set(output.terms) == {"align", "retain"}
    assert (output.terms["retain"] > 0).all()


@pytest.mark.parametrize(
    ("kl_rows", "view"),
    slow_unless(lambda _, view: view == METHODS[1], product(KL_ROWS, METHODS)),
)
def test_the_loss_with_every_term_equals_the_loops(family, kl_rows, view):
    method, reference = view
    options = method_options(
        method, reference, retain_weight=0.3, kl_weight=0.5, kl_rows=kl_rows, sft_weight=0.2
    )
    output = check_against_loops(family, options, RETAINED)
    assert set(output.terms) == {"align", "retain", "kl", "sft"}


@pytest.mark.parametrize(
    ("positions", "kl_rows", "view"),
    slow_unless(
        lambda *case: case[:2] == ("response_and_tail", "responses") or case[2] == METHODS[1],
        product(POSITIONS, KL_ROWS, METHODS),
    ),
)
def test_the_loss_of_packed_rows_equals_the_loops(family, positions, kl_rows, view):
    method, reference = view
    options = method_options(
        method,
        reference,
        positions=positions,
        retain_weight=0.3,
        kl_weight=0.5,
        kl_rows=kl_rows,
        sft_weight=0.2,
    )
    check_against_loops(family, options, RETAINED, packed=True)


@pytest.mark.parametrize("kl_rows", ["responses", "retain"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_kl_term_alone_equals_the_loops(family, kl_rows, side):
    options = method_options(kl_weight=2.0, kl_rows=kl_rows)
    retain = RETAINED if kl_rows == "retain" else ()
    check_against_loops(family, options, retain, padding_side=side, width=20)


@pytest.mark.parametrize("source", ["chosen", "both"])
def test_the_sft_term_alone_equals_the_loops(family, source):
    check_against_loops(family, method_options(sft_weight=2.0, response_source=source))


def test_the_sft_term_is_a_mean_over_chosen_responses(family):
    assert SHARE == {"chosen": 1.0, "rejected": 1.0, "both": 0.5, "random": 0.5}
    both = method_options(sft_weight=1.0, response_source="both")
    chosen = method_options(sft_weight=1.0, response_source="chosen")
    alignment, pairs = alignment_of(family, both), tiny_pairs(3)
    over_both = alignment(alignment.model, batch_of(pairs, both)).terms["sft"]
    alignment = replace(alignment, options=chosen)
    over_chosen = alignment(alignment.model, batch_of(pairs, chosen)).terms["sft"]
    assert over_both.mean().item() == pytest.approx(over_chosen.mean().item(), rel=1e-5)


def test_a_weight_of_the_distance_is_a_factor_of_its_term_alone(family):
    pairs, losses = tiny_pairs(2), {}
    for weight in (0.0, 1.0, 3.0):
        options = method_options(align_weight=weight, sft_weight=0.2)
        alignment = alignment_of(family, options)
        output = alignment(alignment.model, batch_of(pairs, options))
        losses[weight] = output.loss
    align, sft = output.terms["align"], output.terms["sft"]
    for weight, loss in losses.items():
        assert loss.tolist() == pytest.approx((weight * align + 0.2 * sft).tolist(), rel=1e-5)


def protected_folders(folder, count=2):
    """Save directions that are not orthogonal, in another order of layers than the targets'."""
    generator, layers = torch.Generator().manual_seed(4), tuple(reversed(range(DEPTH)))
    for number in range(count):
        vectors = torch.randn(DEPTH, D_MODEL, generator=generator) + 1
        Directions(layers, vectors).save(folder / str(number))
    return [str(folder / str(number)) for number in range(count)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"shift": "token", "protect_weight": 0.0}, {"method": "direction"}]
)
def test_the_loss_with_protected_directions_equals_the_loops(family, tmp_path, packed, more):
    given = {"protect": protected_folders(tmp_path), "protect_weight": 3.0, "retain_weight": 0.3}
    options = method_options(**{**given, **more})
    output = check_against_loops(family, options, RETAINED, packed=packed)
    assert ("protect" in output.terms) == bool(options.protect_weight)
    protected = load_protected(options.protect, LAYERS, D_MODEL)
    alignment = alignment_of(family, options, packed=packed)
    batch = batch_of(tiny_pairs(2), options, RETAINED, packed=packed)
    move = alignment.target(batch, alignment.read_views(batch)).move
    assert move.any()
    torch.testing.assert_close(move @ protected.mT, torch.zeros(1).expand(*move.shape[:2], 2))


def test_a_shift_that_is_protected_as_a_space_is_refused(family, tmp_path):
    stored = stored_directions()
    whole = torch.ones(DEPTH, D_MODEL)
    whole[list(LAYERS)] = stored.vectors
    Directions(tuple(range(DEPTH)), -2 * whole).save(tmp_path)
    with pytest.raises(ValueError, match="nothing is left"):
        alignment_of(family, method_options("direction", protect=[str(tmp_path)]))


PREFERRED = {"dpo_weight": 3.0, "dpo_beta": 0.7, "pairs_together": True}


@pytest.mark.parametrize(
    ("packed", "view"),
    # Of a method the term sees the reference alone.
    slow_unless(lambda _, view: view in METHODS[:2], product((False, True), METHODS)),
)
def test_the_loss_with_a_dpo_term_equals_the_loops(family, packed, view):
    method, reference = view
    options = method_options(method, reference, **PREFERRED)
    output = check_against_loops(family, options, packed=packed)
    assert set(output.terms) == {"align", "dpo"}
    chosen, rejected = output.terms["dpo"].view(-1, 2).unbind(1)
    assert chosen.tolist() == rejected.tolist()
    assert abs(chosen - torch.log(torch.tensor(2.0))).min() > 1e-3  # the policy has moved


@pytest.mark.parametrize("kl_rows", ["responses", "retain"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_dpo_term_beside_every_other_equals_the_loops(family, kl_rows, packed):
    others = {"retain_weight": 0.3, "kl_weight": 0.5, "kl_rows": kl_rows, "sft_weight": 0.2}
    options = method_options(max_response_tokens=2, **others, **PREFERRED)
    output = check_against_loops(family, options, RETAINED, packed=packed)
    assert set(output.terms) == {"align", "retain", "kl", "sft", "dpo"}


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_of_rejected_responses_only_has_an_sft_term_of_zero(family, packed):
    options = method_options(sft_weight=1.0, response_source="both")
    dataset = Responses(tiny_pairs(2), "both")
    batch = collator_of(options, packed=packed)([dataset[1], dataset[3]])
    alignment = alignment_of(family, options, packed=packed)
    output = alignment(alignment.model, batch)
    assert output.terms["sft"].tolist() == [0.0, 0.0]
    output.loss.sum().backward()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    "terms", [{}, {"sft_weight": 0.1}, {"kl_weight": 0.3}, PREFERRED], ids=lambda terms: [*terms]
)
def test_the_first_tokens_of_responses_are_aligned_and_all_predicted(
    family, terms, positions, packed
):
    options = method_options(max_response_tokens=2, positions=positions, **terms)
    check_against_loops(family, options, packed=packed)


@pytest.mark.parametrize(
    ("model", "view"),
    slow_unless(
        lambda model, view: model == "llama" or view == METHODS[0],
        product(("llama", "gpt2"), METHODS),
    ),
)
def test_the_loss_does_not_depend_on_side_or_amount_of_padding(family, gpt2_family, model, view):
    method, reference = view
    options = method_options(
        method, reference, retain_weight=0.3, kl_weight=0.5, kl_rows="retain", sft_weight=0.2
    )
    alignment = alignment_of({"llama": family, "gpt2": gpt2_family}[model], options, packed=True)
    pairs = tiny_pairs(3)
    results = []
    sides = [
        {"padding_side": side, "width": width} for side in ("right", "left") for width in (0, 30)
    ]
    for collating in (*sides, {"packed": True}):
        batch = batch_of(pairs, options, RETAINED, **collating)
        output = alignment(alignment.model, batch)
        gradient = torch.autograd.grad(output.loss.sum(), trainable(alignment.model))
        results.append((output, torch.cat([part.flatten() for part in gradient])))
    first, first_gradient = results[0]
    for output, gradient in results[1:]:
        assert torch.allclose(output.loss, first.loss, rtol=1e-4)
        assert torch.allclose(gradient, first_gradient, rtol=1e-3, atol=1e-4)
        for name, term in first.terms.items():
            assert torch.allclose(output.terms[name], term, rtol=1e-4, atol=1e-6)


def test_the_loss_does_not_depend_on_the_split_or_order_of_the_batch(family):
    options = method_options("scit", "contrast", retain_weight=0.3, kl_weight=0.5, sft_weight=0.2)
    alignment = alignment_of(family, options)
    dataset = Responses(tiny_pairs(3), "both", RETAINED)
    items = [dataset[index] for index in range(len(dataset))]
    collator = collator_of(options)
    whole = alignment(alignment.model, collator(items))

    singles = [alignment(alignment.model, collator([item])) for item in items]
    assert torch.allclose(torch.cat([one.loss for one in singles]), whole.loss, rtol=1e-4)
    for name in whole.progress._fields:
        total = sum(getattr(one.progress, name) for one in singles)
        assert torch.allclose(total, getattr(whole.progress, name), rtol=1e-3)

    backwards = alignment(alignment.model, collator(items[::-1]))
    assert torch.allclose(backwards.loss.flip(0), whole.loss, rtol=1e-4)


@pytest.mark.parametrize("layer_scale", ["none", "rms", "shift"])
@pytest.mark.parametrize("distance", ["l2", "squared_l2"])
def test_identical_views_give_no_shift_and_the_loss_stays_finite(family, layer_scale, distance):
    options = method_options("lorra", layer_scale=layer_scale, distance=distance)
    pairs = [
        {
            **pair,
            "positive_prompt_ids": pair["prompt_ids"],
            "negative_prompt_ids": pair["prompt_ids"],
        }
        for pair in tiny_pairs(2)
    ]
    alignment, batch = alignment_of(family, options), batch_of(pairs, options)
    shift = alignment.frozen_views.shift(batch)
    assert torch.equal(shift, torch.zeros_like(shift))
    randomize(alignment.model, "default", seed=0, scale=0.0)
    loss = alignment(alignment.model, batch).loss
    assert loss.tolist() == [0.0] * 4
    randomize(alignment.model, "default", seed=9)
    loss = alignment(alignment.model, batch).loss
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in trainable(alignment.model))


def test_the_same_teacher_on_both_sides_gives_no_shift(family):
    options = method_options("dual")
    teachers = dict.fromkeys(("positive", "negative"), family.adapters["positive"])
    alignment = alignment_of(family, options, teachers)
    shift = alignment.frozen_views.shift(batch_of(tiny_pairs(2), options))
    assert torch.equal(shift, torch.zeros_like(shift))


def test_swapping_the_teachers_turns_the_shift_round(family):
    options = method_options("dual")
    batch = batch_of(tiny_pairs(2), options)
    shift = alignment_of(family, options).frozen_views.shift(batch)
    swapped = {
        "positive": family.adapters["negative"],
        "negative": family.adapters["positive"],
    }
    assert torch.equal(alignment_of(family, options, swapped).frozen_views.shift(batch), -shift)
    assert shift.norm() > 1


@pytest.mark.parametrize(("method", "reference"), METHODS)
def test_a_loss_without_predictions_runs_no_head_and_no_block_above_the_top_layer(
    family, method, reference
):
    options = method_options(method, reference)
    alignment = alignment_of(family, options)
    base = alignment.model.get_base_model()
    above, columns = [], []
    for block in base.model.layers[LAYERS[-1] + 1 :]:
        block.register_forward_hook(lambda *_: above.append(1))
    base.lm_head.register_forward_hook(lambda _, inputs, __: columns.append(inputs[0].shape[1]))
    alignment(alignment.model, batch_of(tiny_pairs(2), options))
    assert not above
    assert set(columns) == {0}


def test_retained_texts_are_not_run_through_the_teachers(family):
    options = method_options("dual", retain_weight=1.0)
    alignment = alignment_of(family, options)
    seen = []
    alignment.model.get_base_model().model.embed_tokens.register_forward_hook(
        lambda _, inputs, __: seen.append(len(inputs[0]))
    )
    alignment(alignment.model, batch_of(tiny_pairs(2), options, RETAINED))
    assert seen == [8, 4, 4, 8]


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ({"sft_weight": 1.0}, 2),  # the last chosen response
        ({"kl_weight": 1.0}, 3),  # the last response
        ({"kl_weight": 1.0, "kl_rows": "retain"}, -1),  # the last row
        ({}, None),
    ],
    ids=str,
)
def test_packed_rows_behind_the_last_scored_one_end_at_the_top_layer(family, options, last):
    options = method_options(retain_weight=1.0, **options)
    alignment = alignment_of(family, options, packed=True)
    batch, seen = batch_of(tiny_pairs(2), options, RETAINED, packed=True), set()
    for block in alignment.model.get_base_model().model.layers[LAYERS[-1] + 1 :]:
        block.register_forward_hook(lambda _, inputs, __: seen.add(inputs[0].shape[1]))
    alignment(alignment.model, batch)
    ends = [spans[-1][1] for spans in batch["reference"]["spans"]]
    assert seen == (set() if last is None else {ends[last]})
    assert len(ends) == 8


@pytest.mark.parametrize("source", ["both", "chosen"])
def test_the_gradient_of_packed_rows_with_retained_texts_is_that_of_padded_ones(family, source):
    options = method_options(
        retain_weight=0.5, sft_weight=1.0, kl_weight=0.5, response_source=source
    )
    gradients = []
    for packed in (False, True):
        alignment = alignment_of(family, options, packed=packed)
        batch = batch_of(tiny_pairs(2), options, RETAINED, packed=packed)
        alignment(alignment.model, batch).loss.sum().backward()
        weights = trainable(alignment.model)
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
    padded, packed = gradients
    assert torch.allclose(packed, padded, rtol=1e-3, atol=1e-4 * padded.abs().max().item())
    assert padded.norm() > 0


def test_a_positive_reference_is_read_once(family):
    options = method_options("dual", "positive")
    alignment = alignment_of(family, options)
    forwards = []
    alignment.model.get_base_model().model.embed_tokens.register_forward_hook(
        lambda *_: forwards.append(1)
    )
    alignment(alignment.model, batch_of(tiny_pairs(2), options))
    assert len(forwards) == 3


def test_no_gradient_reaches_the_target(family):
    alignment = alignment_of(family, method_options())
    batch = batch_of(tiny_pairs(2), method_options())
    target = alignment.target(batch, alignment.read_views(batch))
    assert not any(part.requires_grad for part in target)


def test_dropout_of_the_policy_does_not_touch_the_target(family):
    options = method_options()
    alignment = alignment_of(family, options, lora_dropout=0.5)
    batch = batch_of(tiny_pairs(2), options)
    still = alignment.read_views(batch)
    alignment.model.train()
    moving = alignment.read_views(batch)
    assert torch.equal(moving.reference, still.reference)
    assert torch.equal(moving.shift, still.shift)
    first, second = (alignment(alignment.model, batch).loss for _ in range(2))
    assert not torch.equal(first, second)


def test_progress_is_0_where_the_policy_starts(family):
    options = method_options("dual", "positive")
    views = TABLE["dual"].views("positive")
    model = attach_policy(family.load_base(), lora(), range(3), family.adapters["positive"])
    add_teachers(model, {name: family.adapters[name] for name in views.teachers()}, 3)
    alignment = Alignment(FrozenViews(model, views, LAYERS, {}), options)
    output = alignment(model, batch_of(tiny_pairs(2), options))
    assert output.progress.reached().tolist() == [0.0, 0.0]
    assert output.progress.moved.tolist() == [0.0, 0.0]


def test_the_mean_shift_is_that_of_single_responses_whatever_the_batches(family):
    options = method_options("scit", "base", positions="response_and_tail", retain_weight=1.0)
    alignment = alignment_of(family, options)
    dataset = Responses(tiny_pairs(3), "both", RETAINED)
    items = [dataset[index] for index in range(len(dataset))]
    collator = collator_of(options)

    singles = torch.stack(
        [alignment.frozen_views.shift(collator([item])).mean(1) for item in items]
    )
    for size in (1, 4, 6):
        batches = [(collator(items[start : start + size]), True) for start in range(0, 6, size)]
        found = mean_shift(alignment, batches, torch.device("cpu"))
        assert torch.allclose(found.vectors, singles.mean(0), atol=1e-5)
        assert found.metadata == {
            "method": "scit",
            "positions": "response_and_tail",
            "fit": "mean",
            "responses": "6",
        }


def test_a_batch_that_does_not_count_leaves_the_mean_shift_as_it_is(family):
    options = method_options("scit", "base")
    alignment, pairs = alignment_of(family, options), tiny_pairs(3)
    counted, repeated = batch_of(pairs[:2], options), batch_of(pairs[2:], options)
    cpu = torch.device("cpu")
    alone = mean_shift(alignment, [(counted, True)], cpu)
    beside = mean_shift(alignment, [(counted, True), (repeated, False)], cpu)
    assert torch.equal(beside.vectors, alone.vectors)
    assert beside.metadata["responses"] == "4"


def test_a_mean_shift_adds_the_same_vector_at_every_token(family):
    options = method_options("dual", alpha=3.0, layer_scale="none")
    alignment = alignment_of(family, options).towards(stored_directions())
    batch = batch_of(tiny_pairs(2), options)
    target = alignment.target(batch, alignment.read_views(batch))
    vectors = 3.0 * stored_directions().vectors.unsqueeze(1)
    assert torch.equal(target.move, vectors.expand_as(target.move))


@pytest.mark.parametrize(
    ("method", "reference", "teachers"),
    [
        ("dual", "base", ("positive", "negative")),
        ("dual", "positive", ("positive", "negative")),
        ("scit", "base", ("contrast",)),
        ("scit", "contrast", ("contrast",)),
        ("dpo_shift", "base", ("preferred",)),
        ("dpo_shift", "preferred", ("preferred",)),
        ("lorra", "base", ()),
        ("direction", "base", ()),
        ("direction", "positive", ("positive",)),
    ],
)
def test_views_name_the_teachers_they_need(method, reference, teachers):
    assert views_of(method, reference, stored_shift=False).teachers() == teachers


@pytest.mark.parametrize(("method", "reference"), METHODS)
def test_a_stored_shift_needs_the_reference_only(method, reference):
    views = views_of(method, reference, stored_shift=True)
    assert (views.positive, views.negative) == (None, None)
    assert views.teachers() == (() if reference == "base" else (reference,))


@pytest.mark.parametrize("reference", ["base", "preferred"])
def test_the_shift_of_a_dpo_teacher_costs_one_pass_beside_the_reference(family, reference):
    options = method_options("dpo_shift", reference, shift="token")
    alignment, forwards = alignment_of(family, options), []
    alignment.model.get_base_model().model.register_forward_hook(lambda *_: forwards.append(1))
    alignment.read_views(batch_of(tiny_pairs(2), options))
    assert len(forwards) == 2


def test_instructed_views_read_rows_that_differ_in_the_instruction():
    for method in ("scit", "lorra"):
        views = TABLE[method].views("base")
        assert (views.positive.rows, views.negative.rows) == ("positive", "negative")
        assert views.positive.teacher == views.negative.teacher
    dual = TABLE["dual"].views("base")
    assert dual.positive.rows == dual.negative.rows == "reference"
    assert dual.positive.teacher != dual.negative.teacher
