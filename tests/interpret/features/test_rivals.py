"""Rivals against dense linear algebra: what they explain of held-out differences, and what they
see of a latent.
"""

import numpy as np
import pytest
import torch

from rahf.interpret.features.explained import Explained
from rahf.interpret.features.rivals import Reproduced, Rivals, seen

WIDTH = 24


def tokens(count, seed):
    """Return differences with a constant along axis 0 and much variance along axis 1."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, WIDTH, generator=generator)
    difference = 0.05 * torch.randn(count, WIDTH, generator=generator)
    difference[:, 0] += 0.5
    difference[:, 1] += torch.randn(count, generator=generator)
    return base, base + difference


def test_rivals_are_fitted_to_one_half_and_measured_on_the_other():
    rivals = Rivals(WIDTH)
    for seed in range(8):
        rivals.fit_to(*tokens(100, seed))
    for seed in range(8, 12):
        rivals.measure(*tokens(100, seed))
    fitted, sides = rivals.fitted(), [tokens(100, seed) for seed in range(12)]
    fit_on = torch.cat([aligned - base for base, aligned in sides[:8]]).double()
    held = torch.cat([aligned - base for base, aligned in sides[8:]]).double()
    torch.testing.assert_close(fitted.mean, fit_on.mean(0), atol=1e-6, rtol=1e-6)
    shares = {name: part.share() for name, part in rivals.explained.items()}
    left = held - fit_on.mean(0)
    energy = held.square().sum()
    assert shares["mean"] == pytest.approx((1 - left.square().sum() / energy).item(), abs=1e-6)
    axis = torch.from_numpy(np.linalg.eigh(np.cov(fit_on.T.numpy(), bias=True))[1][:, -1].copy())
    left = left - (left @ axis)[:, None] * axis
    assert shares["1"] == pytest.approx((1 - left.square().sum() / energy).item(), abs=1e-5)
    assert list(shares) == ["mean", "1", "4", "16"]
    assert sorted(shares.values()) == list(shares.values())
    assert abs(fitted.components[0, 1]) > 0.99
    around = 1 - left.square().sum() / (held - held.mean(0)).square().sum()
    assert rivals.explained["1"].variance() == pytest.approx(around.item(), abs=1e-5)
    far = Rivals(WIDTH)
    base, aligned = tokens(400, 0)
    far.fit_to(base, aligned + 5 * torch.eye(WIDTH)[0])  # components are around the mean
    assert abs(far.fitted().components[0, 1]) > 0.99
    areas = rivals.separability()
    assert 0.55 < areas["mean"] < 0.8
    assert 0.55 < areas["probe"] < 0.8


def test_a_latent_is_seen_by_the_rivals_that_make_its_movement():
    rivals = Rivals(WIDTH)
    rivals.fit_to(*tokens(4000, 0))
    fitted, axes = rivals.fitted(), torch.eye(WIDTH)
    base, aligned = (states.double() for states in tokens(2000, 1))
    # latents: a part of the mean difference at an angle to it, the size of axis 1, noise of axis 5
    directions = torch.stack([0.3 * axes[0] + axes[2], axes[1], axes[5]]).double()

    def summed(states):
        along = states @ directions.T
        along[:, 1:] = along[:, 1:].abs()
        return along.sum(0)

    guesses = fitted.guesses(aligned - base)
    reproduced = Reproduced(3)
    half = len(base) // 2
    for part in (slice(0, half), slice(half, None)):
        reproduced.add(
            summed(base[part]),
            summed(aligned[part]),
            {name: summed(base[part] + guess[part]) for name, guess in guesses.items()},
        )

    def seen_by(latent, divergence=0.0, p=0.01):
        return seen(fitted, reproduced, latent, directions[latent], divergence, p).by()

    assert reproduced.share("mean", 0) == pytest.approx(1, abs=0.1)
    assert abs(reproduced.share("mean", 1)) < 0.1
    assert reproduced.share("1", 1) == pytest.approx(1, abs=0.1)
    assert seen_by(0)[0] == "mean"
    assert seen_by(1) == ["principal"]
    assert seen_by(1, -0.8) == ["principal", "divergence"]
    assert seen_by(1, -0.8, p=0.06) == ["principal"]  # of a few responses
    assert Reproduced(3).share("mean", 1) == 0


def test_nothing_to_fit_to_is_refused_and_no_difference_is_explained_by_nothing():
    with pytest.raises(ValueError, match="at least 2 prompts"):
        Rivals(WIDTH).fitted()
    none = Explained()
    none.add(torch.zeros(3, 4), torch.zeros(3, 4))
    assert (none.share(), none.variance()) == (0, 0)
