"""Pursuit: planted sparse sums are found exactly, and random vectors stay inside of their band."""

import numpy as np
import pytest
import torch

from rahf.interpret.features.pursuit import pursue, random_band, terms_above


def directions(latents=48, width=32, seed=0):
    """Return decoder rows of different norms, the last one dead."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(latents, width, generator=generator)
    rows *= torch.rand(latents, 1, generator=generator) + 0.5
    rows[-1] = 0
    return rows


@pytest.mark.parametrize("count", [1, 2, 3])
def test_planted_sparse_vectors_are_found_exactly_with_their_signs(count):
    rows = directions()
    generator = torch.Generator().manual_seed(count)
    latents = torch.stack([torch.randperm(47, generator=generator)[:count] for _ in range(40)])
    sizes = 1 + torch.rand(40, count, generator=generator)
    signs = torch.randint(2, (40, count), generator=generator) * 2 - 1
    planted = (signs * sizes).unsqueeze(1) @ rows[latents]
    found = pursue(planted.squeeze(1), rows, terms=count)
    for place in range(40):
        by_latent = dict(zip(found.latents[place].tolist(), found.coefficients[place], strict=True))
        assert set(by_latent) == set(latents[place].tolist())
        got = torch.stack([by_latent[latent] for latent in latents[place].tolist()])
        torch.testing.assert_close(got, (signs * sizes)[place], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.explained[:, -1], torch.ones(40), atol=1e-5, rtol=0)


def test_each_step_is_the_least_squares_of_a_loop():
    rows, target = directions(), torch.randn(3, 32, generator=torch.Generator().manual_seed(5))
    found = pursue(target, rows, terms=6)
    for place in range(3):
        left, taken = target[place], []
        for step in range(6):
            units = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-9)
            closeness = (units @ left).abs()
            closeness[taken] = -1
            taken.append(int(closeness.argmax()))
            solved = torch.linalg.lstsq(rows[taken].T, target[place][:, None]).solution[:, 0]
            left = target[place] - rows[taken].T @ solved
            share = 1 - left.square().sum() / target[place].square().sum()
            assert found.explained[place, step] == pytest.approx(share.item(), abs=1e-5)
        assert found.latents[place].tolist() == taken
        torch.testing.assert_close(found.coefficients[place], solved, atol=1e-4, rtol=1e-4)
    assert (found.explained.diff(dim=1) > 0).all()


def test_a_reached_target_takes_nothing_from_equal_directions():
    rows = directions()
    rows[1] = rows[0]
    found = pursue(2 * rows[:1], rows, terms=4)
    assert found.latents[0, 0].item() in (0, 1)
    assert found.explained[0].min() > 1 - 1e-6
    assert found.coefficients[0, [0, 1]].sum().item() == pytest.approx(2, abs=1e-4)
    assert found.coefficients.isfinite().all()


def test_random_vectors_are_in_their_band_and_planted_ones_above():
    rows = directions()
    band = random_band(rows, terms=8, vectors=400, seed=0)
    assert torch.equal(band.high, random_band(rows, terms=8, vectors=400, seed=0).high)
    assert not torch.equal(band.high, random_band(rows, terms=8, vectors=400, seed=1).high)
    others = torch.randn(400, 32, generator=torch.Generator().manual_seed(9))
    inside = pursue(others, rows, 8).explained
    share = ((inside >= band.low) & (inside <= band.high)).float().mean(0)
    assert (share > 0.9).all()
    assert (share < 1).all()
    planted = rows[3] - 0.7 * rows[11]
    assert terms_above(pursue(planted[None], rows, 8).explained[0], band) == 8
    assert terms_above(band.median, band) == 0
    assert np.mean([terms_above(each, band) > 0 for each in inside]) < 0.045
    gap = torch.where(torch.arange(8) == 2, band.median, band.high + 0.01)
    assert terms_above(gap, band) == 2


def test_what_cannot_be_decomposed_is_refused():
    rows = directions()
    for target, terms, message in (
        (torch.zeros(1, 32), 2, "norm zero"),
        (torch.full((1, 32), torch.nan), 2, "not finite"),
        (torch.ones(1, 30), 2, "the direction has 30 dimensions, those of the dictionary have 32"),
        (torch.ones(1, 32), 33, "33 terms cannot be taken from 47 directions in 32 dimensions"),
        (torch.ones(1, 32), 0, "0 terms"),
    ):
        with pytest.raises(ValueError, match=message):
            pursue(target, rows, terms)
