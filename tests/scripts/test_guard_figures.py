"""Figures of the guard experiment are ratios of means, with intervals over pairs and seeds."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from guard_figures import figures_of, resampled, table


def results(plain, oracle, arm, spread=0.0, training="sft"):
    """Return results of a seed whose arms have these mean margins, over eight units."""
    wobble = spread * np.linspace(-1, 1, 8)

    def of(margin, wanted):
        return {
            "held_trait": list(margin + wobble),
            "held_wanted": list(-wanted + wobble),
            "held_answers": list(wanted + wobble),
            "unrelated": list(3 + margin + wobble),
        }

    arms = {
        "plain": of(plain, 1.0),
        "oracle": of(oracle, 1.0),
        "arm": of(arm, 0.8),
    }
    arms["plain"]["steered"] = of(oracle, 1.0)
    return {"training": training, "base": of(0.0, 0.0), "arms": arms}


def test_the_leak_is_counted_from_plain_to_the_oracle():
    figures = figures_of([results(1.0, 0.2, 0.4)], "arm")
    assert figures["leak removed"] == pytest.approx([0.75] * 3)
    assert figures["past the oracle"] == pytest.approx([-0.2] * 3)
    assert figures["wanted kept"] == pytest.approx([0.8] * 3)
    assert figures["loss over plain"] == pytest.approx([-0.6] * 3)


def test_dpo_is_asked_for_margins_and_sft_for_answers():
    both = results(1.0, 0.2, 0.4)
    both["arms"]["arm"]["held_answers"] = [0.1] * 8
    assert figures_of([both], "arm")["wanted kept"][0] == pytest.approx(0.1)
    assert figures_of([{**both, "training": "dpo"}], "arm")["wanted kept"][0] == pytest.approx(0.8)


def test_an_interval_over_seeds_holds_both_of_two_that_differ():
    mean, low, high = resampled([[[0.0] * 8, [1.0] * 8]], lambda a: a)
    assert (mean, low, high) == (0.5, 0.0, 1.0)


def test_a_difference_between_arms_is_taken_pair_by_pair():
    figures = figures_of([results(1.0, 0.2, 0.4, spread=5.0)], "arm")
    assert figures["past the oracle"] == pytest.approx([-0.2] * 3)
    low, high = figures["trait margin"][1:]
    assert high - low > 1


def test_the_table_has_the_arms_that_every_seed_has():
    one, two = results(1.0, 0.2, 0.4), results(1.0, 0.2, 0.4)
    del two["arms"]["arm"]
    lines = table([one, two]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "base", "plain", "oracle", "steering 1"
    ]  # fmt: skip
