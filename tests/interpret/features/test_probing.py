"""Probes: planted labels are found, nothing is found where there is nothing, intervals hold."""

import numpy as np
import pytest
import torch

from rahf.interpret.features.dictionary import codes_of_active
from rahf.interpret.features.probes import area, logistic
from rahf.interpret.features.probing import (
    pooled,
    probe_densely,
    probe_dimensions,
    probe_latents,
    ranked_latents,
    split_labels,
)


def labelled(texts=400, latents=60, seed=0, strength=1.5):
    """Return mean activations of texts, of which latents 7 and 21 follow the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(texts, generator=generator) < 0.4
    values = torch.rand(texts, latents, generator=generator)
    values[torch.rand(texts, latents, generator=generator) < 0.7] = 0
    values[:, 7] += strength * labels * torch.rand(texts, generator=generator)
    values[:, 21] += strength / 2 * ~labels * torch.rand(texts, generator=generator)
    values[:, 3] = 0
    return values, labels


def test_activations_are_averaged_over_the_tokens_of_each_text():
    values = labelled(texts=9)[0]
    owners = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3])
    codes = pooled(codes_of_active(values), owners, 4)
    dense = torch.zeros(4, 60)
    dense[codes.owners(), codes.indices.long()] = codes.values
    expected = torch.stack(
        [values[:3].mean(0), values[3:5].mean(0), 0 * values[0], values[5:].mean(0)]
    )
    torch.testing.assert_close(dense, expected)
    assert (codes.indices.diff()[codes.owners().diff() == 0] > 0).all()


def test_latents_are_ranked_by_the_training_texts_only():
    values, labels = labelled()
    split = split_labels(labels, 0)
    codes = codes_of_active(values)
    order = ranked_latents(codes, labels, split.train)
    assert order[0] == 7
    assert 3 not in order.tolist()
    inside = values[split.train].double()
    apart = inside[labels[split.train]].mean(0) - inside[~labels[split.train]].mean(0)
    size = apart.abs() / inside.std(0, correction=0)
    assert order.tolist() == size.nan_to_num(-1).argsort(descending=True)[:59].tolist()
    other = values.clone()
    other[split.test] = 0
    assert torch.equal(ranked_latents(codes_of_active(other), labels, split.train), order)
    assert probe_latents(codes, labels, split)[2].latents == [7, 21]


def test_sparse_probes_find_planted_labels_and_none_in_noise():
    values, labels = labelled()
    split = split_labels(labels, 0)
    found = probe_latents(codes_of_active(values), labels, split)
    assert list(found) == [1, 2, 4, 8, 16]
    assert found[1].auc.mean > 0.7
    assert found[2].auc.mean > found[1].auc.mean
    assert found[2].accuracy.low > 0.6
    assert probe_densely(values, labels, split).auc.mean > 0.8
    assert probe_dimensions(values, labels, split)[2] == found[2]
    held = []
    for seed in range(20):
        values, labels = labelled(texts=200, seed=seed, strength=0)
        split = split_labels(labels, seed)
        held.append(probe_latents(codes_of_active(values), labels, split)[4].auc)
    assert np.mean([each.mean for each in held]) == pytest.approx(0.5, abs=0.05)
    assert sum(each.low <= 0.5 <= each.high for each in held) >= 16


def test_the_logistic_regression_is_at_its_minimum():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(100, 5, generator=generator, dtype=torch.double)
    labels = features[:, 0] + torch.randn(100, generator=generator) > 0
    weights = logistic(features, labels, 0.01).requires_grad_()
    inputs = torch.cat([features, torch.ones(100, 1)], 1)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        inputs @ weights, labels.double(), reduction="sum"
    ) + 0.5 * (weights[:-1].square().sum() * 0.01 * 100 + 1e-6 * weights[-1] ** 2)
    loss.backward()
    assert weights.grad.abs().max() < 1e-6
    certain = logistic(features[:, :1], features[:, 0] > 0, 1e-6)  # separable
    assert certain.isfinite().all()


def test_areas_are_those_of_all_pairs_and_their_intervals_hold_the_truth():
    scores = torch.tensor([0.1, 0.4, 0.4, 0.8], dtype=torch.double)
    labels = torch.tensor([False, True, False, True])
    assert area(scores, labels).mean == 0.875
    generator, hits = torch.Generator().manual_seed(0), 0
    truth = 0.5 * (1 + torch.erf(torch.tensor(0.5))).item()  # of N(1, 1) over N(0, 1)
    for _ in range(200):
        labels = torch.arange(120) < 50
        scores = torch.randn(120, generator=generator, dtype=torch.double) + labels
        found = area(scores, labels)
        hits += found.low <= truth <= found.high
    assert hits >= 180


def newcombe(area, m, n, steps=200001):
    """Return the areas on a grid that are no more than 1.96 of their standard errors away."""
    grid = np.linspace(0, 1, steps)
    k = (m + n) / 2 - 1
    spread = 1 + k * (1 - grid) / (2 - grid) + k * grid / (1 + grid)
    inside = grid[np.abs(grid - area) <= 1.959964 * np.sqrt(grid * (1 - grid) * spread / (m * n))]
    return inside[0], inside[-1]


def test_intervals_of_areas_are_no_points_and_hold_the_truth_with_few_texts():
    for size in (3, 20):
        scores, labels = torch.arange(2 * size).double(), torch.arange(2 * size) >= size
        assert area(scores, labels) == pytest.approx((1, *newcombe(1, size, size)), abs=1e-4)
        turned = area(scores, ~labels)
        assert turned == pytest.approx((0, *newcombe(0, size, size)), abs=1e-4)
    mixed = area(torch.tensor([0.1, 0.4, 0.4, 0.8, 0.9]).double(), torch.arange(5) % 2 == 1)
    assert mixed == pytest.approx((3.5 / 6, *newcombe(3.5 / 6, 2, 3)), abs=1e-4)
    generator, hits = torch.Generator().manual_seed(0), 0
    truth = 0.5 * (1 + torch.erf(torch.tensor(1.25))).item()  # 0.96
    for _ in range(200):
        labels = torch.arange(20) < 10
        scores = torch.randn(20, generator=generator, dtype=torch.double) + 2.5 * labels
        found = area(scores, labels)
        hits += found.low <= truth <= found.high
    assert hits >= 180  # DeLong's intervals: 126


def test_both_labels_need_texts_and_are_on_both_sides():
    _, labels = labelled()
    split = split_labels(labels, 1)
    assert sorted([*split.train.tolist(), *split.test.tolist()]) == list(range(400))
    shares = [labels[side].double().mean().item() for side in split]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)
    with pytest.raises(ValueError, match="3 of 30 texts have the label 1; a probe needs at least"):
        split_labels(torch.arange(30) < 3, 0)
