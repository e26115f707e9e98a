"""Preference accuracy and margin by every measure, against a loop."""

import pytest
import torch
from tiny_models import EOS, tiny_pairs, tiny_tokenizer

from rahf.evaluation.preferences import pair_sizes, preference_figures
from rahf.models.likelihood import PairLikelihoods, pair_likelihoods


def by_loop(model, prompt, response):
    logprobs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return sum(logprobs[p, t].item() for p, t in zip(places, response, strict=True))


def test_every_measure_is_that_of_a_loop_over_pairs(family):
    model, reference, tokenizer = family.load("positive"), family.load(None), tiny_tokenizer()
    pairs = tiny_pairs(7)
    with torch.no_grad():
        sums = [
            [by_loop(m, pair["prompt_ids"], pair[f"{side}_ids"]) for side in ("chosen", "rejected")]
            for pair in pairs
            for m in (model, reference)
        ]
    sums = torch.tensor(sums).view(7, 2, 2)  # pair, model, side
    sizes = pair_sizes(pairs, tokenizer)
    assert sizes.chosen[0] == len(tokenizer.decode(pairs[0]["chosen_ids"][:-1]))
    own, its = (pair_likelihoods(m, pairs, EOS, batch_size=3) for m in (model, reference))
    tokens = torch.tensor([[len(p["chosen_ids"]), len(p["rejected_ids"])] for p in pairs])
    expected = {
        "sum": sums[:, 0, 0] - sums[:, 0, 1],
        "per_token": sums[:, 0, 0] / tokens[:, 0] - sums[:, 0, 1] / tokens[:, 1],
        "per_byte": sums[:, 0, 0] / sizes.chosen - sums[:, 0, 1] / sizes.rejected,
        "implicit_reward": (sums[:, 0] - sums[:, 1]) @ torch.tensor([1.0, -1.0]),
    }
    figures = preference_figures(own, sizes, its)
    for name, margins in expected.items():
        assert figures[name]["margin"]["mean"] == pytest.approx(margins.mean().item(), abs=1e-4)
        assert figures[name]["accuracy"]["mean"] == pytest.approx(
            (margins > 0).float().mean().item()
        )
    assert figures["pairs"] == 7
    assert "implicit_reward" not in preference_figures(own, sizes)


def test_length_is_reported_beside_and_a_tie_counts_half():
    ones = torch.ones(4)
    own = PairLikelihoods(-ones, -torch.tensor([2.0, 1.0, 0.5, 3.0]), ones, ones)
    sizes = pair_sizes(
        [{"chosen_ids": [4] * n, "rejected_ids": [5] * 2} for n in (1, 2, 3, 4)], tiny_tokenizer()
    )
    figures = preference_figures(own, sizes)
    assert figures["sum"]["accuracy"]["mean"] == 2.5 / 4
    assert figures["longer_is_chosen"]["mean"] == 2.5 / 4
