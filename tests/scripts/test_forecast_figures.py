"""The figures of the forecast experiment equal a loop, and compare only runs of one kind."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from forecast_figures import area, interval, spearman

KIND = np.array(["sft"] * 4 + ["dpo"] * 3)
SCORE = np.array([0.1, 0.4, 0.2, 0.9, 5.0, 7.0, 6.0])


def test_the_area_is_the_share_of_ordered_pairs_within_a_kind():
    changed = np.array([0, 1, 0, 1, 1, 0, 0])
    # SFT: both changed runs are above both others; DPO: the changed run is below both.
    assert area(SCORE, changed, KIND) == pytest.approx(4 / 6)
    assert area(np.zeros(7), changed, KIND) == 0.5
    assert np.isnan(area(SCORE, np.zeros(7), KIND))


def test_the_correlation_does_not_see_what_distinguishes_the_kinds():
    change = np.array([1.0, 3.0, 2.0, 4.0, -8.0, -6.0, -7.0])
    assert spearman(SCORE, change, KIND) == pytest.approx(1.0)
    assert spearman(SCORE, -change, KIND) == pytest.approx(-1.0)
    assert spearman(np.ones(7), change, KIND) == 0.0


def test_an_interval_holds_the_figure_and_draws_within_kinds():
    mean, low, high = interval(lambda places: float(SCORE[places].mean()), KIND)
    assert mean == pytest.approx(SCORE.mean())
    # Three of seven are drawn from the upper kind in every draw.
    assert low > 2.1
    assert low < mean < high < 3.7
