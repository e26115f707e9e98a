"""Movement between real models: adapter off is the base, batches change nothing, a side effect that
was planted is found, and a placebo is within the band of another.
"""

from dataclasses import replace

import pytest
import torch
from planted_dictionaries import random_dictionary
from tiny_models import EOS, tiny_model
from toy_alignment import LAYER, any_text, feature_of, text, toy_adapter, toy_base, toy_dictionary
from transformers import LlamaForCausalLM

from rahf.interpret.explanations.predict import measure_difference
from rahf.interpret.features.held_out import encoded, find_movement, movement_figures
from rahf.interpret.features.movement import outside, ranked
from rahf.interpret.features.responses import HeldOut, Read, read_batch
from rahf.models.adapters import put_adapter
from rahf.report.feature_movement import movement_tables

PROMPTS = [[5, 6, 7, 8], [9], [10, 11], [12, 13, 14]]
RESPONSES = [[12, 13, EOS], [14, 15, 16, 17, 18, 19], [20], [21, 22, 23, 24]]
HELD_OUT = [
    HeldOut(number // 2, prompt, response)
    for number, (prompt, response) in enumerate(zip(PROMPTS * 2, RESPONSES * 2, strict=True))
]


def with_adapters(family):
    model = put_adapter(family.load_base(), family.adapters["positive"])
    return put_adapter(model, family.adapters["negative"], "negative").eval()


@pytest.mark.parametrize("kind", ["states", "differences"])
@pytest.mark.parametrize("site", ["residual", "mlp"])
def test_results_do_not_depend_on_the_batch_size(site, kind, family):
    model = with_adapters(family)
    dictionary = random_dictionary(family.load_base(), site=site, kind=kind)
    found = [
        find_movement(
            model, dictionary, ["default"], HELD_OUT, EOS, placebos=["negative"], batch_size=size
        )
        for size in (1, 3, 8)
    ]
    for other in found[1:]:
        for name in ("default", "negative"):
            ours, theirs = found[0].moved.changes[name], other.moved.changes[name]
            torch.testing.assert_close(ours.effect.mean, theirs.effect.mean, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(ours.size, theirs.size, atol=1e-4, rtol=1e-3)
        assert other.divergence.mean == pytest.approx(found[0].divergence.mean, rel=1e-4)
        assert other.explained.share() == pytest.approx(found[0].explained.share(), rel=1e-4)
        for name, part in other.rivals.explained.items():
            assert part.share() == pytest.approx(found[0].rivals.explained[name].share(), rel=1e-4)
    assert (found[0].moved.prompts, found[0].fit["base"] is None) == (4, kind == "differences")


def test_no_difference_moves_no_feature_of_differences():
    plain = random_dictionary(kind="differences")
    bias = torch.randn(plain.d_model, generator=torch.Generator().manual_seed(3))
    dictionary = replace(plain, weights=plain.weights._replace(bias=bias))
    states = torch.randn(9, plain.d_model, generator=torch.Generator().manual_seed(4))
    codes, _ = encoded(
        dictionary, Read(states, {"same": states, "moved": states + 1}, [9], [0.0], [9])
    )
    assert len(codes[None].indices) > 0
    assert torch.equal(codes[None].values, codes["same"].values)
    assert not torch.equal(codes[None].values, codes["moved"].values)


@pytest.mark.parametrize("site", ["residual", "mlp"])
def test_states_are_those_of_models_of_their_own(site, family):
    model, layer = with_adapters(family), 1
    dictionary = random_dictionary(family.load_base(), layer=layer, site=site)
    read = read_batch(model, dictionary, ["default", "negative"], HELD_OUT[:3], EOS, [EOS])
    assert read.lengths == [2, 6, 1]  # the end of the first response is not read
    alone = {"default": family.load("positive"), "negative": family.load("negative")}
    for name, own in {None: family.load(None), **alone}.items():
        states = []
        block = own.get_decoder().layers if name is None else own.get_base_model().model.layers
        module = block[layer] if site == "residual" else block[layer].mlp
        module.register_forward_hook(
            lambda _module, _args, output, states=states: states.append(output[0])
        )
        for each in HELD_OUT[:3]:
            with torch.no_grad():
                own(input_ids=torch.tensor([each.prompt_ids + each.response_ids]))
            kept = [place for place, token in enumerate(each.response_ids) if token != EOS]
            states[-1] = states[-1][len(each.prompt_ids) :][kept]
        ours = read.base if name is None else read.aligned[name]
        torch.testing.assert_close(ours, torch.cat(states), atol=1e-5, rtol=1e-4)
    assert min(read.divergences) > 0


def test_the_token_kl_is_the_mean_over_all_response_tokens(family):
    """The end of a response is predicted too, though its state is not read."""
    model, dictionary = with_adapters(family), random_dictionary(family.load_base())
    held_out = [
        HeldOut(0, [5, 6], [5, EOS]),
        HeldOut(1, [7], [9, 4, *range(11, 19), EOS]),
        HeldOut(1, [7], [20, EOS]),
    ]
    base, aligned = family.load(None), family.load("positive")
    per_token = []
    for _, prompt, response in held_out:
        with torch.no_grad():
            one, other = (
                m(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                for m in (base, aligned)
            )
        per_token.append((one.exp() * (one - other)).sum(-1))
    found = find_movement(model, dictionary, ["default"], held_out, EOS, special=[EOS])
    assert found.divergence.mean == pytest.approx(torch.cat(per_token).mean().item(), rel=1e-4)
    by_prompt = measure_difference(model, dictionary, [0, 3], held_out, EOS, special=[EOS])
    second = torch.cat(per_token[1:]).mean().item()
    assert by_prompt.divergence.tolist() == pytest.approx(
        [per_token[0].mean().item(), second], 1e-4
    )


def test_an_adapter_that_does_nothing_moves_nothing(family):
    model = put_adapter(family.load_base(), family.adapters["positive"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    dictionary = random_dictionary(family.load_base())
    found = find_movement(model, dictionary, ["default"], HELD_OUT, EOS)
    assert found.moved.changes["default"].effect.mean.abs().max() == 0
    assert found.moved.changes["default"].q.min() == 1
    assert found.divergence.mean == pytest.approx(0, abs=1e-9)
    assert not found.fits_worse()
    for aligned, worse in ((0.885, False), (0.875, True)):
        assert found._replace(fit={"base": 0.9, "aligned": aligned}).fits_worse() == worse


def test_what_cannot_be_compared_is_refused(family):
    model, base = with_adapters(family), family.load_base()
    dictionary = random_dictionary(base)
    one = [HeldOut(0, [5], [6, 7]), HeldOut(0, [5], [8]), HeldOut(1, [5], [EOS])]
    for which, held_out, message in (
        (dictionary, [], "responses to 0 prompts"),
        (dictionary, one, "responses to 1 prompts"),
        (random_dictionary(base, layer=7), HELD_OUT, "of layer 7, but"),
        (random_dictionary(tiny_model(seed=1)), HELD_OUT, "with the fingerprint"),
    ):
        with pytest.raises(ValueError, match=message):
            find_movement(model, which, ["default"], held_out, EOS, special=[EOS])


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    base = toy_base(folder / "base")
    generator = torch.Generator().manual_seed(5)
    held_out = [
        HeldOut(number, text(generator, length=4), any_text(generator)) for number in range(40)
    ]
    dictionary = toy_dictionary(base)
    return folder, dictionary, held_out, feature_of(base, dictionary, "B")


def toy_movement(toy, seed):
    folder, dictionary, held_out, _ = toy
    paths = {
        name: toy_adapter(folder / "base", folder / f"{name}{seed}", seed, placebo=placebo)
        for name, placebo in (("default", False), ("placebo", True))
    }
    model = LlamaForCausalLM.from_pretrained(folder / "base")
    for name, path in paths.items():
        model = put_adapter(model, path, name)
    return find_movement(
        model.eval(), dictionary, ["default"], held_out, EOS, placebos=["placebo"], batch_size=8
    )


def test_random_directions_show_nothing_that_the_rivals_do_not(toy):
    folder, dictionary, held_out, _ = toy
    model = put_adapter(
        LlamaForCausalLM.from_pretrained(folder / "base"),
        toy_adapter(folder / "base", folder / "shown", 20, placebo=False),
    ).eval()
    other = random_dictionary(model, layer=LAYER, latents=128, k=8)
    found = find_movement(model, other, ["default"], held_out, EOS, batch_size=8)
    figures = movement_figures(found, other.directions, ["default"], [], 20)
    assert sum(row["moved"] for row in figures["features"][:10]) == 10  # yet they all move
    assert figures["unseen_by_rivals"] <= 1
    ours = find_movement(model, dictionary, ["default"], held_out, EOS, batch_size=8)
    assert ours.fit["base"] > 0.9 > found.fit["base"]


@pytest.mark.parametrize("seeds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_planted_side_effect_is_among_the_first_ten_features(seeds, toy):
    found = [toy_movement(toy, seed) for seed in range(seeds)]
    first = [ranked(each.moved)[:10].tolist() for each in found]
    assert sum(toy[3] in latents for latents in first) >= 0.8 * seeds
    for each in found:
        assert each.explained.share() < 1
        assert each.fit["aligned"] < each.fit["base"]
        figures = movement_figures(each, toy[1].directions, ["default"], ["placebo"], 10)
        warned = "of the aligned model's: part of the change is outside" in movement_tables(figures)
        assert warned == each.fits_worse()
        assert each.rivals.explained["mean"].share() > 0.2
    assert found[0].fits_worse()
    # the band of each seed's placebo holds most of what the placebos of other seeds do
    shares = [
        outside(other.moved.changes["placebo"].size, each.moved)
        for each in found
        for other in found
        if other is not each
    ]
    assert sum(shares) <= 0.25 * max(1, len(shares))
