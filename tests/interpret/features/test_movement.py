"""Movement of latents against a dense loop; intervals and discoveries against their promises."""

import numpy as np
import pytest
import torch

from rahf.evaluation.student import t_quantile, two_sided_p
from rahf.interpret.features.clustered import (
    ClusteredSums,
    Correlations,
    benjamini_hochberg,
)
from rahf.interpret.features.dictionary import codes_of_active
from rahf.interpret.features.movement import (
    Movement,
    Said,
    beyond_of_placebos,
    moved_count,
    outside,
    ranked,
)

LATENTS = 40


def activations(tokens, generator, gain=None):
    """Return sparse activations of the base; `gain`: factor a latent."""
    values = torch.rand(tokens, LATENTS, generator=generator)
    values[torch.rand(tokens, LATENTS, generator=generator) < 0.6] = 0
    return values if gain is None else values * gain


def noisy(values, generator, size=0.1):
    """Change the latents as any training does: a little, and differently for each response."""
    factor = 1 + size * torch.randn(LATENTS, generator=generator)
    return values * factor


def said(prompt, base, aligned, divergence=None):
    codes = {name: codes_of_active(values) for name, values in aligned.items()}
    return Said(prompt, codes_of_active(base), codes, divergence)


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [
        (12.7062047, 1, 0.05),
        (2.2281389, 10, 0.05),
        (1.9647294, 499, 0.05),
        (1.959964, 10**6, 0.05),
        (10.0, 9, 3.5782e-6),
        (-4.5, 30, 9.5194e-5),
        (0.0, 7, 1.0),
    ],
)
def test_p_values_are_students(t, freedom, p):
    found = two_sided_p(torch.tensor([t], dtype=torch.double), freedom)
    assert found.item() == pytest.approx(p, rel=1e-3)
    if p == 0.05:
        assert t_quantile(freedom) == pytest.approx(t, rel=1e-3)


def test_clustered_intervals_hold_the_mean_as_often_as_they_promise():
    generator, hits = np.random.default_rng(0), []
    for _ in range(60):
        sums = ClusteredSums(50)
        for _ in range(12):
            tokens = int(generator.integers(3, 30))
            shared = generator.normal(size=50)  # tokens of a cluster are far from independent
            sums.add(torch.from_numpy(tokens * (2 + shared)), tokens)
        means = sums.means()
        hits.append(((means.low <= 2) & (means.high >= 2)).double().mean().item())
    assert 0.90 < np.mean(hits) < 0.97


def test_means_that_do_not_vary_have_no_width_and_one_cluster_is_refused():
    sums = ClusteredSums(2)
    sums.add(torch.tensor([0.0, 3.0]), 3)
    with pytest.raises(ValueError, match="1 prompts have no interval"):
        sums.means()
    sums.add(torch.tensor([0.0, 7.0]), 7)
    means = sums.means()
    assert means.p.tolist() == pytest.approx([1, 0])
    varied = ClusteredSums(1)
    for value in (1.0, 2.0, 6.0):
        varied.add(torch.tensor([value]), 1)
    width = t_quantile(2) * (7 / 3) ** 0.5  # of a mean of three with the variance 7
    assert varied.means().high.item() == pytest.approx(3 + width)
    assert means.mean.tolist() == means.low.tolist() == means.high.tolist() == [0, 1]


def test_correlations_are_numpys_and_zero_where_nothing_varies():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(30, 4)), generator.normal(size=30)
    x[:, 1] += 2 * y
    x[:, 3] = 0.1
    found = Correlations(4)
    for row, number in zip(x, y, strict=True):
        found.add(torch.from_numpy(row), float(number))
    expected = [np.corrcoef(x[:, column], y)[0, 1] for column in range(3)]
    assert found.values().tolist() == pytest.approx([*expected, 0.0], abs=1e-9)
    assert found.p()[1] < 1e-6
    assert found.p()[3] == pytest.approx(1)
    assert Correlations(4).p().tolist() == [1] * 4


def test_discoveries_are_those_of_benjamini_and_hochberg_by_hand():
    p = torch.tensor([0.04, 0.001, 0.5, 0.012, 1e-9], dtype=torch.double)
    tested = torch.tensor([True, True, True, True, False])
    q = benjamini_hochberg(p, tested)
    assert q.tolist() == pytest.approx([0.16 / 3, 0.004, 0.5, 0.024, 1.0])
    close = torch.tensor([0.021, 0.5, 0.02], dtype=torch.double)
    q = benjamini_hochberg(close, torch.ones(3, dtype=torch.bool))
    assert q.tolist() == pytest.approx([0.0315, 0.5, 0.0315])
    null = torch.rand(200, 500, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    every = torch.ones(500, dtype=torch.bool)
    false = [bool((benjamini_hochberg(row, every) < 0.05).any()) for row in null]
    assert np.mean(false) < 0.1


def test_effects_are_those_of_a_dense_loop():
    generator, movement = torch.Generator().manual_seed(0), Movement(LATENTS, ["default"])
    gain = torch.rand(LATENTS, generator=generator) * 2
    rows = []
    for prompt in (0, 0, 1, 2, 2, 3):
        base = activations(int(torch.randint(1, 9, (), generator=generator)), generator)
        aligned = noisy(base * gain, generator)
        rows.append((prompt, base, aligned))
        movement.add(said(prompt, base, {"default": aligned}, aligned.mean().item()))
    movement.add(said(3, base[:0], {"default": base[:0]}))  # an empty response counts nothing
    moved = movement.moved()
    base, aligned = (torch.cat([row[side] for row in rows]).double() for side in (1, 2))
    change = moved.changes["default"]
    torch.testing.assert_close(change.effect.mean, (aligned - base).mean(0))
    spread = ((aligned.var(0, correction=0) + base.var(0, correction=0)) / 2).sqrt()
    torch.testing.assert_close(change.size, ((aligned - base).mean(0) / spread).nan_to_num())
    torch.testing.assert_close(change.rate, (aligned != 0).double().mean(0))
    torch.testing.assert_close(moved.base_rate, (base != 0).double().mean(0))
    assert (moved.prompts, moved.tokens, moved.band) == (4, len(base), None)
    by_hand = ClusteredSums(LATENTS)
    for prompt in range(4):
        parts = [(b, a) for at, b, a in rows if at == prompt]
        by_hand.add(sum((a - b).double().sum(0) for b, a in parts), sum(len(b) for b, _ in parts))
    torch.testing.assert_close(change.effect.p, by_hand.means().p)


def movement_of(generator, prompts=40, gains=(), adapters=("default",), placebos=()):
    movement = Movement(LATENTS, (*adapters, *placebos), placebos)
    fixed = {
        name: 1 + 0.1 * torch.randn(LATENTS, generator=generator) for name in (*adapters, *placebos)
    }
    for name, latent, factor in gains:
        fixed[name][latent] = factor
    for prompt in range(prompts):
        base = activations(20, generator)
        aligned = {name: noisy(base * gain, generator) for name, gain in fixed.items()}
        movement.add(said(prompt, base, aligned))
    return movement.moved()


def test_a_planted_movement_comes_first():
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        gains = [("default", 7, 3.0), ("default", 9, 0.1)]
        moved = movement_of(generator, gains=gains, placebos=("placebo", "another"))
        assert set(ranked(moved)[:2].tolist()) == {7, 9}
        assert moved_count(moved.changes["placebo"]) > LATENTS / 2  # it moves many latents too
        counts = []
        for one, other in (("placebo", "another"), ("another", "placebo")):
            band = moved.changes[other].size.abs().quantile(0.95)
            change = moved.changes[one]
            counts.append(((change.size.abs() > band) & (change.q < 0.05)).sum().item())
        assert beyond_of_placebos(moved, ("placebo", "another")) == np.mean(counts)
        assert beyond_of_placebos(moved, ("placebo",)) == pytest.approx(0.05 * LATENTS)


def test_the_band_of_a_placebo_covers_a_placebo_that_it_has_not_seen():
    generator = torch.Generator().manual_seed(4)
    alone = [movement_of(generator, placebos=("placebo",)) for _ in range(10)]
    others = [movement_of(generator, adapters=("unseen",)) for _ in range(10)]
    shares = [outside(o.changes["unseen"].size, a) for a, o in zip(alone, others, strict=True)]
    assert 0.01 < np.mean(shares) < 0.12  # 5 % is what the band promises


def test_latents_that_track_position_or_length_only_are_flagged():
    generator, movement = torch.Generator().manual_seed(0), Movement(LATENTS, ["default"])
    for prompt in range(30):
        tokens = int(torch.randint(2, 60, (), generator=generator))
        base = activations(tokens, generator)
        base[:, 0] = 0
        base[0, 0] = 5  # the first token of every response
        base[:, 1] = float(np.log(tokens))
        movement.add(said(prompt, base, {"default": base * 1.1}))
    moved = movement.moved()
    assert moved.tracks(0) == ["position", "length"]  # its mean falls with the length
    assert moved.tracks(1) == ["length"]
    assert [moved.tracks(latent) for latent in range(2, LATENTS)] == [[]] * (LATENTS - 2)


def test_a_latent_of_fewer_than_five_prompts_is_not_tested():
    generator, movement = torch.Generator().manual_seed(0), Movement(LATENTS, ["default"])
    for prompt in range(20):
        base = activations(5, generator)
        for latent, prompts in ((2, 1), (5, 4), (6, 5)):
            base[:, latent] = 9.0 if prompt < prompts else 0.0
        movement.add(said(prompt, base, {"default": base * 2}))
    moved = movement.moved()
    assert moved.tested.tolist() == [latent not in (2, 5) for latent in range(LATENTS)]
    assert 2 not in ranked(moved).tolist()
    assert moved.changes["default"].q[2] == 1


def test_sizes_of_adapters_have_one_unit():
    """A placebo that shifts a steady activation by little is no larger than what moves it."""
    generator = torch.Generator().manual_seed(0)
    movement = Movement(LATENTS, ["policy", "placebo"], ["placebo"])
    for prompt in range(12):
        base = torch.ones(20, LATENTS)
        moved = base + 0.5 + torch.rand(20, LATENTS, generator=generator)
        movement.add(said(prompt, base, {"policy": moved, "placebo": base + 0.01}))
    moved = movement.moved()
    sizes = {name: change.size.abs() for name, change in moved.changes.items()}
    effects = {name: change.effect.mean for name, change in moved.changes.items()}
    torch.testing.assert_close(
        sizes["placebo"] / sizes["policy"], (effects["placebo"] / effects["policy"]).abs()
    )
    assert moved.band < sizes["policy"].min()
