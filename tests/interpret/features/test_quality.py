"""Quality of dictionaries: what a perfect one, an empty one and two seeds come to."""

import pytest
import torch
from test_streams import adapted, corpus, pieces_of
from test_topk import ORIGIN, weights
from tiny_models import EOS, tiny_model

from rahf.interpret.features.dictionary import Origin
from rahf.interpret.features.quality import agreement_of, fit_of, kept_of
from rahf.interpret.features.streams import StateReader
from rahf.interpret.features.topk import TopKDictionary, Weights


def perfect(width, layer=1, site="residual", kind="states"):
    """Return a signed dictionary that reconstructs every state exactly: the axes."""
    axes, none = torch.eye(width), torch.zeros(width)
    origin = Origin("tiny", None, layer, site, kind)
    return TopKDictionary(origin, Weights(axes, none, axes, none), width, signed=True)


def dead(width, layer=1, site="residual", kind="states"):
    axes, none = torch.eye(width), torch.zeros(width)
    origin = Origin("tiny", None, layer, site, kind)
    return TopKDictionary(origin, Weights(axes, none - 1e9, axes, none), 2)


def kept_by(dictionary, reader, pieces):
    return kept_of({"it": dictionary}, reader, pieces)["it"]


def test_the_fit_is_the_one_by_hand():
    states = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    dictionary = TopKDictionary(ORIGIN, weights(), 3)
    codes = dictionary.encode(states)
    left = states - dictionary.decode(codes)
    whole = fit_of(dictionary, [states])
    assert whole.tokens == 30
    assert whole.l0 == pytest.approx(len(codes.indices) / 30)
    variance = (states - states.mean(0)).square().sum()
    assert whole.explained == pytest.approx(1 - (left.square().sum() / variance).item(), abs=1e-5)
    assert whole.silent == pytest.approx((codes.firings() == 0).float().mean().item())
    assert sum(whole.density) == 20
    parts = fit_of(dictionary, list(states.split(7)))
    assert parts[4] == whole[4]
    assert parts[:4] == pytest.approx(whole[:4], abs=1e-5)


def test_density_counts_latents_by_the_share_of_their_tokens():
    states = torch.zeros(100, 4)
    states[:, 0], states[:10, 1], states[:5, 2] = 1.0, 1.0, 1.0
    fit = fit_of(perfect(4), [states])
    # never: below the first edge; 5 %: from 1 %; 10 %: from 10 %; always: the last, from 10 %
    assert fit.density == [1, 0, 0, 0, 0, 1, 2]


def test_all_latents_dead_is_an_error():
    with pytest.raises(ValueError, match="all 6 latents are dead: none is active in any of 30"):
        fit_of(dead(6), [torch.randn(30, 6)])


def test_a_dictionary_agrees_with_itself_and_with_another_only_by_chance():
    first, second = (TopKDictionary(ORIGIN, weights(200, 40, seed), 3) for seed in (0, 1))
    assert agreement_of(first, first)[:2] == pytest.approx((1.0, 1.0))
    found = agreement_of(first, second)
    assert found.cosine == pytest.approx(found.chance, abs=0.03)
    assert found.alike == 0
    turned = TopKDictionary(ORIGIN, first.weights._replace(directions=-first.directions), 3)
    assert agreement_of(first, turned, signed=True).cosine == pytest.approx(1.0)
    assert agreement_of(first, turned).cosine < 0.7


@pytest.mark.parametrize("site", ["residual", "mlp"])
def test_the_loss_is_kept_by_a_perfect_dictionary_and_lost_by_a_dead_one(site):
    model, pieces = tiny_model("llama"), pieces_of(corpus())
    reader = StateReader(model, (1,), site, "states", EOS, 4)
    kept = kept_by(perfect(16, site=site), reader, pieces)
    assert kept.spliced == pytest.approx(kept.whole, abs=1e-5)
    assert kept.recovered == pytest.approx(1.0, abs=1e-3)
    assert kept.ablated != pytest.approx(kept.whole, abs=1e-2)
    assert kept_by(dead(16, site=site), reader, pieces).recovered == pytest.approx(0.0, abs=1e-3)
    alone = kept_by(perfect(16, site=site), reader._replace(batch_size=1), pieces)
    assert alone == pytest.approx(kept, abs=1e-4)


def test_of_differences_the_divergence_from_the_aligned_model_is_kept():
    model, pieces = adapted(), pieces_of(corpus())
    reader = StateReader(model, (1,), "residual", "differences", EOS, 4)
    kept = kept_by(perfect(16, kind="differences"), reader, pieces)
    assert kept.whole == pytest.approx(0.0, abs=1e-6)
    assert kept.spliced == pytest.approx(0.0, abs=1e-5)
    assert kept.ablated > 0.01
    lost = kept_by(dead(16, kind="differences"), reader, pieces)
    assert lost.spliced == pytest.approx(kept.ablated, rel=1e-3)


@pytest.mark.parametrize("kind", ["states", "differences"])
def test_dictionaries_of_several_layers_are_measured_together_as_each_alone(kind):
    model, pieces = (tiny_model("llama") if kind == "states" else adapted()), pieces_of(corpus())
    makes = {"perfect": perfect, "dead": dead}
    several = {
        (name, layer): make(16, layer, kind=kind)
        for name, make in makes.items()
        for layer in (1, 2)
    }
    reader = StateReader(model, (1, 2), "residual", kind, EOS, 4)
    together = kept_of(several, reader, pieces)
    for name, dictionary in several.items():
        alone = kept_by(dictionary, reader._replace(layers=(dictionary.origin.layer,)), pieces)
        assert together[name] == pytest.approx(alone, abs=1e-5)


def test_massive_states_keep_their_place_unless_asked_for():
    model, pieces = tiny_model("llama"), pieces_of(corpus())
    with torch.no_grad():
        model.get_input_embeddings().weight[int(pieces[1].ids[2])] *= 1e4
    reader = StateReader(model, (1,), "residual", "states", EOS, 4)
    marked = dead(16)
    kept, lost = (
        kept_of({"it": marked}, reader, pieces, massive=massive)["it"] for massive in (False, True)
    )
    assert lost.spliced == pytest.approx(lost.ablated, abs=1e-5)
    assert kept.whole == lost.whole
    assert abs(kept.spliced - lost.spliced) > 1e-3
