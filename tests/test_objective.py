import math

import pytest
import torch
from reference import objective as loops

from rahf.objective import (
    RESOLUTION,
    SMALLEST_SCALE,
    Target,
    layer_scale,
    progress,
    row_loss,
    row_mean,
    token_progress,
)

LAYERS, D_MODEL, ROWS = 2, 3, 3
OWNER = torch.tensor([0, 0, 0, 1, 2, 2])


def random_states(seed):
    return torch.randn(
        LAYERS, len(OWNER), D_MODEL, generator=torch.Generator().manual_seed(seed)
    ).double()


def of_row(states, row):
    """Return the states of one row in the form of the loops."""
    return {layer: states[layer, row == OWNER].tolist() for layer in range(LAYERS)}


def asked_of(kind, shift, alpha=1.0):
    reference = random_states(0)
    return Target(
        reference, alpha * shift, layer_scale(kind, reference, alpha * shift, OWNER, ROWS)
    )


@pytest.mark.parametrize("distance", ["l2", "squared_l2"])
@pytest.mark.parametrize("kind", ["none", "rms", "shift"])
def test_row_loss_equals_the_loops(distance, kind):
    shift, hidden, alpha = random_states(1), random_states(2), 2.5
    asked = asked_of(kind, shift, alpha)
    loss = row_loss(hidden, asked, OWNER, distance)

    for row in range(ROWS):
        start, asked_shift = of_row(asked.reference, row), of_row(shift, row)
        units = loops.layer_units(start, asked_shift, alpha, kind)
        expected = loops.align_loss(of_row(hidden, row), start, asked_shift, alpha, units, distance)
        assert loss[row].item() == pytest.approx(expected, rel=1e-9)


def test_distances_by_hand():
    # One row of two tokens; the errors are (3, 4) and (0, 0): norms 5 and 0, squares 25 and 0.
    asked = Target(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.full((1, 1), 2.0))
    hidden = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    owner = torch.tensor([0, 0])
    assert row_loss(hidden, asked, owner, "l2").tolist() == [2.5 / 2]
    assert row_loss(hidden, asked, owner, "squared_l2").tolist() == [12.5 / 4]


def test_the_target_is_the_reference_moved_by_the_shift():
    asked = asked_of("none", random_states(1))
    at_target = row_loss(asked.states, asked, OWNER, "l2")
    assert torch.equal(at_target, torch.zeros(ROWS).double())


def test_a_long_row_counts_as_much_as_a_short_one():
    values = torch.tensor([[1.0, 2.0, 3.0, 10.0, 5.0, 7.0]])
    assert row_mean(values, OWNER, ROWS).tolist() == [[2.0, 10.0, 6.0]]


def test_a_row_without_tokens_has_a_mean_of_zero():
    assert row_mean(torch.ones(1, 2), torch.tensor([0, 2]), 3).tolist() == [[1.0, 0.0, 1.0]]


def test_a_layer_of_large_states_weighs_as_much_as_one_of_small_ones_when_scaled():
    shift, hidden = random_states(1), random_states(2)
    larger = torch.tensor([1.0, 1000.0]).view(2, 1, 1)
    for kind in ("rms", "shift"):
        asked = asked_of(kind, shift)
        scaled = Target(
            asked.reference * larger,
            asked.move * larger,
            layer_scale(kind, asked.reference * larger, asked.move * larger, OWNER, ROWS),
        )
        for distance in ("l2", "squared_l2"):
            plain = row_loss(hidden, asked, OWNER, distance)
            assert torch.allclose(row_loss(hidden * larger, scaled, OWNER, distance), plain)


def test_the_shift_is_the_unit_of_its_own_loss_at_the_start():
    # All errors are the asked shift itself, so each layer's mean square is one unit squared.
    asked = asked_of("shift", random_states(1))
    at_start = row_loss(asked.reference, asked, OWNER, "squared_l2")
    assert torch.allclose(at_start, torch.ones(ROWS).double())


@pytest.mark.parametrize("distance", ["l2", "squared_l2"])
def test_a_shift_of_zero_gives_a_finite_loss_and_gradient(distance):
    asked = asked_of("shift", torch.zeros(LAYERS, len(OWNER), D_MODEL).double())
    for start in (asked.reference.clone(), random_states(2)):
        hidden = start.requires_grad_()
        loss = row_loss(hidden, asked, OWNER, distance)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(hidden.grad).all()
    rms = row_mean(asked.reference.square().sum(-1), OWNER, ROWS).sqrt()
    assert torch.equal(asked.scale, SMALLEST_SCALE * rms)


@pytest.mark.parametrize("distance", ["l2", "away"])
def test_an_error_that_rounding_makes_has_no_direction(distance):
    asked = asked_of("rms", torch.zeros(LAYERS, len(OWNER), D_MODEL).double())

    def gradient(share):
        """Return the gradient of the distance of states that are a share of their size beside the
        target.
        """
        noise = random_states(3)
        noise *= share * (asked.reference.norm(dim=-1) / noise.norm(dim=-1)).unsqueeze(-1)
        hidden = (asked.reference + noise).requires_grad_()
        loss = row_loss(hidden, asked, OWNER, distance)
        loss.sum().backward()
        return loss.abs().max(), hidden.grad.norm(dim=-1)

    loss, sizes = gradient(0.9 * RESOLUTION)
    assert loss == 0
    assert torch.equal(sizes, torch.zeros_like(sizes))
    # Above, the gradient of a norm has the same length however small the norm.
    _, sizes = gradient(1.1 * RESOLUTION)
    assert torch.allclose(sizes, gradient(0.1)[1])
    assert (sizes > 0).all()


def test_a_small_shift_is_asked_for_all_the_same():
    asked = asked_of("rms", RESOLUTION / 10 * random_states(0))
    hidden = asked.reference.clone().requires_grad_()
    row_loss(hidden, asked, OWNER, "l2").sum().backward()
    assert (hidden.grad.norm(dim=-1) > 0).all()


def test_a_state_that_is_not_a_number_is_no_rounding():
    asked = asked_of("rms", torch.zeros(LAYERS, len(OWNER), D_MODEL).double())
    assert row_loss(asked.reference * torch.nan, asked, OWNER, "l2").isnan().all()


def test_progress_is_0_at_the_start_and_1_at_the_target():
    asked = asked_of("none", random_states(1))
    start = progress(asked.reference, asked)
    target = progress(asked.states, asked)
    assert start.reached().tolist() == [0.0, 0.0]
    assert target.reached().tolist() == pytest.approx([1.0, 1.0])
    assert target.cosine().tolist() == pytest.approx([1.0, 1.0])
    assert start.cosine().isnan().all()


def test_progress_halfway_and_astray_by_hand():
    # Asked: 2 along the first axis. Moved: 1 along it and 1 beside it.
    asked = Target(torch.zeros(1, 1, 2), torch.tensor([[[2.0, 0.0]]]), torch.ones(1, 1))
    made = progress(torch.tensor([[[1.0, 1.0]]]), asked)
    assert made.reached().tolist() == [0.5]
    assert made.cosine().tolist() == pytest.approx([math.sqrt(0.5)])


def test_progress_of_rows_is_that_of_each_row_by_itself():
    asked, hidden = asked_of("none", random_states(1)), random_states(2)
    rows = token_progress(hidden, asked).of_rows(OWNER, ROWS)
    for row in range(ROWS):
        own = row == OWNER
        alone = progress(
            hidden[:, own], Target(asked.reference[:, own], asked.move[:, own], asked.scale)
        )
        for whole, part in zip(rows, alone, strict=True):
            assert torch.allclose(whole[:, row], part)


def test_tokens_without_a_shift_are_left_out_of_progress():
    asked = asked_of("none", random_states(1))
    retained = torch.cat([asked.move, torch.zeros(LAYERS, 2, D_MODEL)], 1)
    moved = torch.cat([random_states(2), 100 * torch.ones(LAYERS, 2, D_MODEL)], 1)
    both = Target(torch.cat([asked.reference, torch.zeros(LAYERS, 2, D_MODEL)], 1), retained, None)
    for whole, part in zip(progress(moved, both), progress(random_states(2), asked), strict=True):
        assert torch.allclose(whole, part)


def test_progress_adds_up_over_batches():
    asked, hidden = asked_of("none", random_states(1)), random_states(2)
    parts = [
        progress(hidden[:, cut], Target(asked.reference[:, cut], asked.move[:, cut], asked.scale))
        for cut in (slice(0, 2), slice(2, None))
    ]
    for whole, first, second in zip(progress(hidden, asked), *parts, strict=True):
        assert torch.allclose(whole, first + second)
