"""The quickstart's own arithmetic: the rows of the policy whose sides were swapped."""

import pytest

from rahf.pipeline.quickstart import judged_line, turned


def test_intervals_turn_with_their_shares():
    row = {
        "preference_accuracy": 0.7,
        "preference_accuracy_interval": [0.6, 0.9],
        "preference_margin": 0.4,
        "shows_wanted": 0.8,
        "shows_wanted_interval": [0.7, 0.95],
        "shows_opposite": 0.1,
        "shows_opposite_interval": [0.05, 0.2],
    }
    seen = turned(row)
    for name in ("preference_accuracy", "shows_wanted", "shows_opposite"):
        low, high = seen[f"{name}_interval"]
        assert low < seen[name] < high
    assert seen["shows_opposite"] == 0.8
    assert turned(seen) == {name: pytest.approx(value) for name, value in row.items()}


def test_the_last_line_names_the_mean_of_each_policy():
    models = {"base": {"answers": 48}, "policy warm": {"judged_mean": 0.8256}}
    line = judged_line(models | {"policy sour": {"judged_mean": -0.4324}})
    assert "warm have a mean tone of +0.83, those of policy sour -0.43: 1.26 apart, 48" in line
