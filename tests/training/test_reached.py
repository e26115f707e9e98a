"""Intervals of the reached share and of the cosine, over held-out pairs."""

import numpy as np
import pytest
import torch

from rahf.objective import Progress
from rahf.training.reached import PairProgress, estimates


def drawn(random, pairs):
    """Return sums of pairs that reach 0.6 of the shift on average, at a cosine below 1."""
    full = random.uniform(1.0, 3.0, pairs)
    share = random.normal(0.6, 0.2, pairs)
    return share * full, (share**2 + random.uniform(0.2, 0.4, pairs)) * full, full


@pytest.mark.parametrize("pairs", [12, 60])
def test_intervals_hold_the_value_of_all_pairs_in_19_of_20_samples(pairs):
    random = np.random.default_rng(0)
    dot, moved, full = (each.sum() for each in drawn(random, 100_000))
    whole = {"reached": dot / full, "cosine": dot / np.sqrt(moved * full)}
    hits = dict.fromkeys(whole, 0)
    for _ in range(100):
        for name, each in estimates(*drawn(random, pairs)):
            hits[name] += each.low <= whole[name] <= each.high
    assert all(88 <= hit <= 99 for hit in hits.values()), hits


def test_means_are_those_of_the_sums():
    dot, moved, full = drawn(np.random.default_rng(1), 9)
    found = dict(estimates(dot, moved, full))
    made = Progress(*(torch.tensor([each.sum()]) for each in (dot, moved, full)))
    assert found["reached"].mean == pytest.approx(made.reached().item())
    assert found["cosine"].mean == pytest.approx(made.cosine().item())


def test_both_responses_of_a_pair_are_one_unit_whatever_the_batches():
    dot, moved, full = (
        torch.tensor(each).view(1, -1) for each in drawn(np.random.default_rng(2), 8)
    )
    rows = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    once, apart = PairProgress(), PairProgress()
    once.add(rows, Progress(dot, moved, full))
    for cut in (slice(0, 3), slice(3, None)):
        apart.add(rows[cut], Progress(dot[:, cut], moved[:, cut], full[:, cut]))
    found = once.take([5])
    assert found == pytest.approx(apart.take([5]))
    assert found.keys() == {
        f"repr/{name}_{end}/layer_5" for name in ("reached", "cosine") for end in ("low", "high")
    }
    pairs = [each.view(4, 2).sum(1).numpy() for each in (dot, moved, full)]
    assert found["repr/reached_low/layer_5"] == pytest.approx(
        dict(estimates(*pairs))["reached"].low
    )
    assert once.take([5]) == {}


def test_a_layer_without_a_shift_and_a_single_pair_have_no_interval():
    nothing = np.zeros(4)
    assert list(estimates(nothing, nothing, nothing)) == []
    single = PairProgress()
    single.add(torch.tensor([0]), Progress(*(torch.ones(1, 1) for _ in range(3))))
    assert single.take([0]) == {}
