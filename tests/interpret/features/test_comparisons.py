"""Features beside neurons, across models and sizes, and their effects on logits, against dense
loops and planted answers.
"""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from tiny_models import ARCHITECTURES, D_MODEL, VOCABULARY, lora, randomize, tiny_model

from rahf.interpret.features.dictionary import codes_of_active
from rahf.interpret.features.firing import (
    chosen_activations,
    compared_at_one_rate,
    firing_at,
    token_information,
)
from rahf.interpret.features.logit_effects import all_effects, logit_effects
from rahf.interpret.features.splitting import splitting
from rahf.interpret.features.universality import SharedFeatures


def sparse(tokens, latents, seed, rate=0.3):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(tokens, latents, generator=generator)
    values[torch.rand(tokens, latents, generator=generator) > rate] = 0
    return values


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logit_effects_are_those_of_the_models_own_norm_and_head(architecture):
    model = tiny_model(architecture)
    directions = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(0))
    decoder = model.get_decoder()
    norm = next(m for name, m in decoder.named_children() if "norm" in name or name == "ln_f")
    with torch.no_grad():
        up, down = (model.get_output_embeddings()(norm(sign * directions)) for sign in (1, -1))
    if cap := getattr(model.config, "final_logit_softcapping", None):
        up, down = (cap * torch.tanh(logits / cap) for logits in (up, down))
    expected = (up - down) / 2
    expected -= expected.mean(1, keepdim=True)
    found = all_effects(model, directions)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    strongest = logit_effects(model, directions, tokens=4)
    assert torch.equal(strongest.raised, expected.topk(4).indices)
    assert torch.equal(strongest.lowered, (-expected).topk(4).indices)
    assert (strongest.lowered_by <= 0).all()


def test_logit_effects_are_the_bases_under_an_adapter_and_need_its_width():
    model, directions = tiny_model(), torch.randn(2, D_MODEL)
    expected = all_effects(model, directions)
    adapted = get_peft_model(model, lora(target_modules=["lm_head", "q_proj"]))
    randomize(adapted, "default", 1)
    assert torch.equal(all_effects(adapted, directions), expected)
    with pytest.raises(ValueError, match="3 dimensions, the model's hidden states 16"):
        logit_effects(model, torch.randn(2, 3))


def test_universality_is_the_largest_correlation_of_a_dense_loop():
    first, other = sparse(400, 12, 0), sparse(400, 20, 1)
    other[:, 5] = first[:, 3] * 2
    other[:, 6] = first[:, 4] + 0.5 * other[:, 6]
    first[:, 7] = 0
    first[3, 7] = 1.0  # active too seldom
    shared = SharedFeatures(torch.tensor([2, 3, 4, 7]), (12, 20))
    for start, stop in ((0, 150), (150, 151), (151, 400)):
        shared.add(codes_of_active(first[start:stop]), codes_of_active(other[start:stop]))
    found = shared.universality()
    assert found.latents.tolist() == [2, 3, 4]
    for place, latent in enumerate(found.latents.tolist()):
        correlations = [np.corrcoef(first[:, latent], other[:, j])[0, 1] for j in range(20)]
        assert found.correlation[place].item() == pytest.approx(max(correlations), abs=1e-4)
        assert found.best[place].item() == int(np.argmax(correlations))
    assert found.correlation[1].item() == pytest.approx(1, abs=1e-4)
    assert found.shuffled.max() < 0.3
    with pytest.raises(ValueError, match="codes of 2 and of 3 tokens"):
        shared.add(codes_of_active(first[:2]), codes_of_active(other[:3]))


def test_features_that_split_are_given_to_the_nearest_of_the_smaller_dictionary():
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(4, 64, generator=generator)
    near = 0.3 * torch.randn(4, 64, generator=generator)
    large = torch.cat(
        [small[:1] + near[:1], 5 * small[:1] + near[1:2], small[1:2], -small[2:3], near[2:3]]
    )
    found = splitting(small, large, threshold=0.7)
    assert found.children.tolist() == [2, 1, 0, 0]
    assert found.parent.tolist() == [0, 0, 1, -1, -1]
    assert found.shares() == {"lost": 0.5, "kept": 0.25, "split": 0.25, "new": 0.4}
    assert splitting(small, large, 0.7, signed=False).children.tolist() == [2, 1, 1, 0]
    with pytest.raises(ValueError, match="64 and of 63 dimensions"):
        splitting(small, large[:, 1:], 0.7)


def test_activations_of_chosen_latents_are_the_dense_ones():
    values = sparse(30, 12, 0)
    found = chosen_activations(codes_of_active(values), torch.tensor([7, 0, 11]))
    assert torch.equal(found, values[:, [7, 0, 11]])


def test_units_are_made_to_fire_at_the_rates_asked_for():
    activations = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    fires = firing_at(activations, torch.tensor([0.01, 0.2, 0.0]))
    assert fires.sum(0).tolist() == [10, 200, 1]
    assert activations[fires[:, 1], 1].min() > activations[~fires[:, 1], 1].max()


def test_information_about_tokens_is_found_where_it_was_planted():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (8001,), generator=generator)
    current, following = ids[:-1], ids[1:]
    features = torch.zeros(8000, 3)
    features[:, 0] = (current < 4).float()
    features[:, 1] = (following < 4).float() * 2
    features[:, 2] = torch.rand(8000, generator=generator) < 0.1
    neurons = torch.randn(8000, 3, generator=generator)
    neurons[:, 2] += (current < 4) * 1.0
    found = compared_at_one_rate(features, {"neurons": neurons}, current, following)
    ours, others = found["features"], found["neurons"]
    assert ours.current[0] > 0.95
    assert ours.next[1] > 0.95
    assert ours.current[1:].abs().max() < 0.02
    assert abs(ours.next[0]) < 0.02
    assert 0.02 < others.current[2] < 0.5
    assert others.current[:2].abs().max() < 0.02
    with pytest.raises(ValueError, match="1 tokens cannot be split"):
        token_information(features[:1] != 0, current[:1])
