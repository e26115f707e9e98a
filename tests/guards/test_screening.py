"""A forecast is a mean over rows and layers, by prompts, and flags no direction drawn by chance."""

import numpy as np
import pytest
import torch

from rahf.directions.vectors import Directions
from rahf.evaluation.student import two_sided_p
from rahf.guards.screening import (
    Sides,
    clustered_p,
    false_discovery,
    forecast,
    row_effects,
    totals,
)
from rahf.guards.texts import WordClassifier, word_score

WIDTH, LAYERS = 24, (3, 5)


def mixing(generator):
    """Return a map from noise to states whose variance differs by direction, as in a model."""
    spread = torch.logspace(1, -1, WIDTH)
    turned = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    return turned * spread


def sides_of(seed, rows=100, prompts=None, shift=None, noise=1.0):
    """Return states of two responses a row: a shared content, own content and a shift."""
    generator = torch.Generator().manual_seed(seed)
    mixed = [mixing(generator) for _ in LAYERS]
    shared, *own = (torch.randn(rows, WIDTH, generator=generator) for _ in range(3))
    if shift is None:  # the sides differ in something that no direction of the bank means
        shift = torch.stack([each @ torch.randn(WIDTH, generator=generator) for each in mixed])
    first, second = (
        torch.stack([(shared + noise * part) @ each.T for each in mixed]) for part in own
    )
    group = np.arange(rows) % (prompts or rows)
    return Sides(first + shift[:, None], second, LAYERS, group), mixed


def contrasts(mixed, count, seed):
    """Return directions as random contrasts of other responses from the same distribution."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    drawn = [torch.randn(WIDTH, generator=generator) for _ in range(count)]
    return {
        f"random {n}": Directions(LAYERS, torch.stack([each @ noise for each in mixed]))
        for n, noise in enumerate(drawn)
    }


def uniform(count, seed):
    generator = torch.Generator().manual_seed(20_000 + seed)
    return {
        f"random {n}": Directions(LAYERS, torch.randn(WIDTH, generator=generator).expand(2, -1))
        for n in range(count)
    }


@pytest.mark.parametrize("drawn", ["contrasts", "uniform"])
def test_a_placebo_bank_is_flagged_at_most_five_times_in_a_hundred(drawn):
    """The sides do differ, in no trait of the bank: a test over rows flags most directions."""
    flagged = banks = by_rows = directions = 0
    for seed in range(60):
        sides, mixed = sides_of(seed)
        bank = contrasts(mixed, 5, seed) if drawn == "contrasts" else uniform(5, seed)
        found = forecast(sides, bank, seed)
        flagged += any(each.verdict != "no sign" for each in found.values())
        by_rows += sum(each.p_rows <= 0.05 for each in found.values())
        banks, directions = banks + 1, directions + len(found)
    assert by_rows > 0.5 * directions
    assert flagged <= 0.05 * banks


def test_sides_that_do_not_differ_are_flagged_at_most_five_times_in_a_hundred():
    flagged = 0
    for seed in range(60):
        sides, mixed = sides_of(seed, shift=torch.zeros(2, WIDTH))
        found = forecast(sides, contrasts(mixed, 5, seed), seed)
        flagged += any(each.verdict != "no sign" for each in found.values())
    assert flagged <= 3


@pytest.mark.parametrize("sign", [1, -1])
def test_a_trait_that_the_sides_differ_in_is_found_with_its_sign(sign):
    generator = torch.Generator().manual_seed(5)
    trait = torch.randn(2, WIDTH, generator=generator)
    sides, mixed = sides_of(1, shift=sign * 2 * trait)
    bank = {"trait": Directions(LAYERS, 3 * trait), **contrasts(mixed, 4, 1)}
    found = forecast(sides, bank)
    assert found["trait"].verdict == ("will rise" if sign > 0 else "will fall")
    assert found["trait"].effect.mean == pytest.approx(sign * 2 / 3, abs=0.3)
    assert {each.verdict for name, each in found.items() if name != "trait"} == {"no sign"}
    assert abs(found["trait"].effect.mean) > found["trait"].random[1]


def test_effects_equal_a_loop_and_the_order_of_the_layers_of_a_direction_does_not_count():
    sides, mixed = sides_of(2, rows=7)
    given = contrasts(mixed, 1, 2)["random 0"]
    turned = Directions(LAYERS[::-1], given.vectors.flip(0))
    rows = forecast(sides, {"one": given, "turned": turned})
    for row in range(7):
        expected = 0.0
        for layer, vector in enumerate(given.vectors):
            moved = (sides.first - sides.second)[layer, row]
            expected += float(moved @ vector / (vector @ vector)) / 2
        assert rows["one"].rows[row] == pytest.approx(expected, rel=1e-4)
    assert rows["one"].rows.tolist() == pytest.approx(rows["turned"].rows.tolist())
    assert row_effects(sides.first.double(), given.vectors.double()).shape == (7,)


def test_rows_of_one_prompt_count_as_one():
    values = np.random.default_rng(0).normal(0.6, 1, 20)
    alone = clustered_p(*totals(values, np.arange(20)))
    t = values.mean() / (values.std(ddof=1) / 20**0.5)
    expected = two_sided_p(torch.tensor([t], dtype=torch.double), 19)[0]
    assert alone == pytest.approx(float(expected), rel=1e-6)
    again, group = np.tile(values, 5), np.tile(np.arange(20), 5)
    assert clustered_p(*totals(again, group)) == pytest.approx(alone)
    assert clustered_p(*totals(again, np.arange(100))) < alone / 5
    assert clustered_p(np.zeros(2), np.ones(2)) == 1


def test_a_data_set_with_one_prompt_is_refused():
    sides, mixed = sides_of(3, rows=6, prompts=1)
    with pytest.raises(ValueError, match="have 1 prompt"):
        forecast(sides, contrasts(mixed, 1, 3))


def test_discoveries_are_those_of_benjamini_and_hochberg():
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert false_discovery(p) == pytest.approx([0.025, 0.05, 0.05, 0.025, 0.5])
    assert false_discovery([1.0, 1.0]) == [1.0, 1.0]


def test_texts_are_scored_by_words_and_by_a_classifier_of_them():
    lists = {"positive": ["Sorry", "can't"], "negative": ["sure"]}
    assert word_score("Sorry, I can\u2019t. Sure?", lists) == pytest.approx(1 / 4)
    assert word_score("", lists) == 0
    classifier = WordClassifier(["good fine day"], ["bad grey day"])
    assert classifier.score("a good day") > 0 > classifier.score("a grey day")
    assert classifier.score("something else") == classifier.score("...") == 0
