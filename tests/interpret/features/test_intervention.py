"""Interventions: identities to the digit, a hook by hand, and strengths that reach a stated KL."""

import pytest
import torch
from planted_dictionaries import random_dictionary
from tiny_models import EOS, tiny_model, tiny_tokenizer

from rahf.directions.calibration import NeutralText
from rahf.generation.answers import generate
from rahf.interpret.features.firing import chosen_activations
from rahf.interpret.features.intervention import Intervention, intervene, module_at, strength_at

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def said(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


def active_latent(model, dictionary):
    """Return the latent that is active most often, and its activations."""
    found = []
    site = module_at(model, dictionary)
    hook = site.register_forward_hook(
        lambda _module, _args, output: found.append(
            output if isinstance(output, torch.Tensor) else output[0]
        )
    )
    said(model)
    hook.remove()
    codes = dictionary.encode(found[0].flatten(0, 1))
    latent = int(codes.firings().argmax())
    return latent, chosen_activations(codes, torch.tensor([latent]))[:, 0], found[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("site", ["residual", "mlp"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_factor_of_one_is_the_identity_to_the_digit(architecture, site, dtype):
    model = tiny_model(architecture).to(dtype)
    dictionary = random_dictionary(model, site=site)
    plain = said(model)
    latent, _, _ = active_latent(model, dictionary)
    with intervene(model, dictionary, [Intervention(latent, "scale", 1.0)]):
        assert torch.equal(said(model), plain)
    with intervene(model, dictionary, [Intervention(latent, "scale", 2.0)]):
        assert not torch.allclose(said(model), plain)
    assert torch.equal(said(model), plain)


def test_pinning_to_the_activation_that_is_there_is_the_identity():
    model = tiny_model()
    dictionary, plain = random_dictionary(model), said(model, IDS[:1, :1])
    site, found = module_at(model, dictionary), []
    hook = site.register_forward_hook(lambda _module, _args, output: found.append(output))
    said(model, IDS[:1, :1])
    hook.remove()
    codes = dictionary.encode(found[0][0])
    latent, value = int(codes.indices[0]), float(codes.values[0])
    for strength, same in ((value, True), (value + 0.5, False)):
        with intervene(model, dictionary, [Intervention(latent, "pin", strength)]):
            assert torch.equal(said(model, IDS[:1, :1]), plain) is same


@pytest.mark.parametrize("site", ["residual", "mlp"])
def test_what_is_added_is_the_change_along_the_directions(site):
    model = tiny_model()
    dictionary = random_dictionary(model, site=site)
    latent, activations, hidden = active_latent(model, dictionary)
    direction = dictionary.directions[latent]
    for intervention, change in (
        (Intervention(latent, "pin", 3.0), 3.0 - activations),
        (Intervention(latent, "scale", 4.0), 3 * activations),
        (Intervention(latent, "ablate"), -activations),
    ):
        wanted = hidden + (change[:, None] * direction).view_as(hidden)
        by_hand = module_at(model, dictionary).register_forward_hook(
            lambda _module, _args, _output, wanted=wanted: wanted
        )
        expected = said(model)
        by_hand.remove()
        with intervene(model, dictionary, [intervention]):
            torch.testing.assert_close(said(model), expected, atol=1e-5, rtol=1e-5)


def test_generation_is_changed_from_the_last_prompt_token_on_and_the_model_left_as_it_was():
    model = tiny_model()
    dictionary = random_dictionary(model)
    latent, _, _ = active_latent(model, dictionary)

    def answers(strength):
        prompts = [[5, 6, 7], [8, 9, 10, 11]]
        with intervene(
            model, dictionary, [Intervention(latent, "pin", strength)], start="generated"
        ):
            return generate(model, tiny_tokenizer(), prompts, max_new_tokens=6)

    hooks = len(module_at(model, dictionary)._forward_hooks)
    assert answers(30.0) != answers(-30.0)
    with pytest.raises(RuntimeError), intervene(model, dictionary, [Intervention(0, "ablate")]):
        raise RuntimeError
    assert len(module_at(model, dictionary)._forward_hooks) == hooks


@pytest.mark.parametrize("how", ["pin", "scale"])
def test_a_strength_is_solved_for_a_stated_divergence(how):
    model = tiny_model()
    dictionary = random_dictionary(model)
    text = NeutralText(model, IDS.tolist(), EOS)
    latent, _, _ = active_latent(model, dictionary)
    strength = strength_at(model, dictionary, latent, how, 0.3, IDS.tolist(), EOS)
    with intervene(model, dictionary, [Intervention(latent, how, strength)]):
        assert text.divergence() == pytest.approx(0.3, rel=0.25)


def test_what_cannot_be_done_is_refused():
    model = tiny_model()
    dictionary, other = random_dictionary(model), random_dictionary(tiny_model(seed=1))
    differences = random_dictionary(model, kind="differences")
    for which, interventions, message in (
        (dictionary, [Intervention(32, "ablate")], "features 0 to 31, not 32"),
        (dictionary, [Intervention(3, "ablate")] * 2, "give each of them once"),
        (other, [Intervention(3, "ablate")], "with the fingerprint"),
        (differences, [Intervention(3, "ablate")], "give a dictionary of states"),
        (random_dictionary(model, layer=9), [Intervention(3, "ablate")], "of layer 9, but"),
    ):
        with pytest.raises(ValueError, match=message), intervene(model, which, interventions):
            pass
    for dtype, strength in ((torch.float32, 3e38), (torch.float32, -1e20), (torch.float16, 1e6)):
        for how in ("pin", "scale"):
            large = [Intervention(3, how, strength)]
            with (
                pytest.raises(ValueError, match=f"feature 3, {how} .* give a smaller strength"),
                intervene(model.to(dtype), random_dictionary(model), large),
            ):
                pass
    model.float()
    with pytest.raises(ValueError, match="nan is not finite"):
        Intervention(3, "pin", float("nan"))
    with pytest.raises(ValueError, match="no strength to solve for"):
        strength_at(model, dictionary, 3, "ablate", 0.3, IDS.tolist(), EOS)
    silent = random_dictionary(model, k=1)
    found = silent.encode(active_latent(model, silent)[2].flatten(0, 1)).indices.tolist()
    quiet = next(latent for latent in range(32) if latent not in found)
    with pytest.raises(ValueError, match=f"feature {quiet}: no strength was found at which scale"):
        strength_at(model, silent, quiet, "scale", 0.3, IDS.tolist(), EOS)
