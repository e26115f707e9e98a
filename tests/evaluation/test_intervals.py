"""Shares, their intervals, and values that no interval may be drawn from."""

from math import inf, isnan, nan

import numpy as np
import pytest
import torch
from tiny_models import EOS, tiny_model, tiny_pairs, tiny_tokenizer
from tokenizers_for_tests import chatml_tokenizer

from rahf.comparison.curves import curves_of
from rahf.data.prompts import chat_prompt_form
from rahf.evaluation.intervals import (
    check_finite,
    mean_estimate,
    ratio_estimate,
    share_estimate,
)
from rahf.evaluation.measures import HeldOut, Measures, measure_model, model_figures
from rahf.evaluation.preferences import PairSizes, preference_figures
from rahf.evaluation.scores import judged_figures, score_figures
from rahf.evaluation.wins import Contest, Outcome, win_rates
from rahf.interpret.token_shift.shift import token_shift
from rahf.judges.judge import Verdict, Verdicts
from rahf.models.likelihood import PairLikelihoods
from rahf.report.judgements import number

# Newcombe 1998 (Statistics in Medicine 17), table I, method 3
PUBLISHED = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


@pytest.mark.parametrize(("count", "of", "low", "high"), PUBLISHED)
def test_a_share_has_the_published_interval(count, of, low, high):
    found = share_estimate([1.0] * count + [0.0] * (of - count))
    assert found == pytest.approx((count / of, low, high), abs=5e-5)
    turned = share_estimate([0.0] * count + [1.0] * (of - count))
    assert turned == pytest.approx((1 - count / of, 1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_interval_of_a_share_holds_it_and_is_never_a_point(size, value):
    found = share_estimate([value] * size)
    assert 0 <= found.low <= found.mean == value <= found.high <= 1
    assert found.high - found.low > 0.001
    assert share_estimate([]) is None


def shares_of_three_of_three():
    """Return {where a share is reported: its ends, where three of three are alike}."""
    ones, twos = torch.ones(3), 2 * torch.ones(3)
    pairs = preference_figures(PairLikelihoods(-ones, -twos, ones, ones), PairSizes(twos, ones))
    contests = [Contest([], "longer", "short")] * 3
    wins = win_rates(contests, [Outcome(1.0, (0.9, 0.1))] * 3, chooser=True)
    estimates = {
        "accuracy": pairs["sum"]["accuracy"],
        "longer is chosen": pairs["longer_is_chosen"],
        "wins": wins["win_rate"],
        "wins at equal length": wins["win_rate_at_equal_length"],
        "the longer wins": wins["longer_wins"],
        "refusals": score_figures([1.0] * 3, share=True)["score"],
    }
    judged = judged_figures([1.0] * 3, 1, (0.5, 0.5))
    run = model_figures(Measures(None, [], [], [], [], [1.0, 2.0, 3.0]), {})
    return {name: (found["low"], found["high"]) for name, found in estimates.items()} | {
        "both orders agree": wins["orders_agree_interval"],
        "answers: wanted": judged["shows_wanted_interval"],
        "accuracy in the table of a run": run["preference_accuracy_interval"],
    }


def test_three_of_three_is_no_certainty_wherever_a_share_is_reported():
    for name, ends in shares_of_three_of_three().items():
        assert ends == pytest.approx((0.4385, 1), abs=1e-4), name


# Means


@pytest.mark.parametrize("units", [2, 3, 10, 29])
def test_the_interval_of_few_units_holds_the_mean_as_often_as_it_promises(units):
    generator = np.random.default_rng(units)
    found = [mean_estimate(row) for row in generator.normal(2, 1, size=(1000, units))]
    assert np.mean([each.low <= 2 <= each.high for each in found]) == pytest.approx(0.95, abs=0.02)


def test_the_ratio_of_few_units_has_students_interval():
    found = ratio_estimate([1.0, 4.0, 1.0], [1, 3, 2])  # residuals 0, 1, -1; error sqrt(3) / 6
    assert found == pytest.approx((1, 1 - 4.302653 * 3**0.5 / 6, 1 + 4.302653 * 3**0.5 / 6))
    assert ratio_estimate([1.0, 4.0, 1.0], [1, 3, 2], 0.0, 1.5) == pytest.approx((1, 0, 1.5))
    assert ratio_estimate([1.0, 4.0, 1.0, 0.0], [1, 3, 2, 0]) == pytest.approx(found)
    alone = mean_estimate([5.0])
    assert (alone.mean, isnan(alone.low), isnan(alone.high)) == (5, True, True)
    assert alone.as_dict() == {"mean": 5, "low": None, "high": None}
    assert number(alone.as_dict()) == "+5.0000"
    assert number(mean_estimate([1, 3]).as_dict(), ".1f") == "2.0 [-10.7, 14.7]"


def test_the_interval_of_30_units_is_that_of_a_bootstrap():
    values = np.arange(30.0)
    drawn = values[np.random.default_rng(0).integers(30, size=(2000, 30))].mean(1)
    assert mean_estimate(values) == pytest.approx((14.5, *np.quantile(drawn, (0.025, 0.975))))


# Values that are not finite


def pairs_with(value, side="chosen"):
    sums = {"chosen": -torch.ones(3), "rejected": -torch.ones(3)}
    sums[side][1] = value
    return PairLikelihoods(**sums, chosen_tokens=torch.ones(3), rejected_tokens=torch.ones(3))


class Says:
    id, responses = "strange", 1

    def __init__(self, value):
        self.value = value

    def verdicts(self, read):
        return (Verdict(self.value if text == "b" else 0.5) for text in read)


def point(key, value):
    figures = {"scores": [1.0], "text_loss": [1.0, 2.0], "text_kl": [0.0, 0.0]}
    figures[key][1] = value
    return {"strength": 1.0, "text_tokens": [3, 4], **figures}


SIZES = PairSizes(torch.ones(3), torch.ones(3))

GIVEN = {
    "a mean": (lambda value: mean_estimate([1.0, value]), "2 of 2"),
    "a share": (lambda value: share_estimate([1.0, value]), "2 of 2"),
    "a pair's chosen side": (
        lambda value: preference_figures(pairs_with(value), SIZES), "chosen .* pair 2 of 3",
    ),
    "a pair's rejected side": (
        lambda value: preference_figures(pairs_with(value, "rejected"), SIZES),
        "rejected .* pair 2 of 3",
    ),
    "a pair of the reference": (
        lambda value: preference_figures(pairs_with(-1), SIZES, pairs_with(value)),
        "reference's .* pair 2 of 3",
    ),
    "a score": (lambda value: Verdicts().ask(Says(value), ["a", "b"]), "text 2 of 2.*'b'"),
    "a mark": (lambda value: Verdicts().ask(Says({"depth": value}), ["b"]), "text 1 of 1"),
    "a kept loss": (lambda value: curves_of([[point("text_loss", value)]]), "text_loss .* 2 of 2"),
    "a kept divergence": (lambda value: curves_of([[point("text_kl", value)]]), "text_kl"),
}  # fmt: skip


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("given", GIVEN)
def test_a_value_that_is_not_finite_is_an_error_that_names_its_row(given, value):
    call, message = GIVEN[given]
    with pytest.raises(ValueError, match=message):
        call(value)


def test_finite_values_and_none_at_all_pass():
    check_finite([0.0, -1e30], "x")
    check_finite([], "x")


def broken_model():
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = nan
    return model


def test_a_model_whose_predictions_are_not_finite_is_not_measured():
    pairs = HeldOut(tiny_pairs(3), [], chat_prompt_form(chatml_tokenizer()), [], 2)
    with pytest.raises(ValueError, match="preference margin of pair 1 of 3 is nan"):
        measure_model(broken_model(), tiny_tokenizer(), pairs)
    texts = HeldOut((), [], chat_prompt_form(chatml_tokenizer()), [[5, 6, 7], [8, 9]], 2)
    with pytest.raises(ValueError, match="loss of unrelated text 1 of 2 is nan"):
        measure_model(broken_model(), tiny_tokenizer(), texts)


@pytest.mark.parametrize("broken", ["aligned", "base"])
def test_predictions_that_are_not_finite_have_no_token_shift(broken):
    models = {"aligned": tiny_model(), "base": tiny_model()} | {broken: broken_model()}
    with pytest.raises(ValueError, match=r"response to prompt 7: .* not finite"):
        token_shift(**models, prompts=[[5, 6]], responses=[[7, 8]], pad_token_id=EOS, names=[7])


def test_a_kept_verdict_that_is_not_finite_is_asked_for_again(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    Verdicts(path).ask(Says(0.25), ["a", "b"])
    path.write_text(path.read_text().replace("0.25", "NaN"))
    assert [each.value for each in Verdicts(path).ask(Says(0.75), ["a", "b"])] == [0.5, 0.75]
