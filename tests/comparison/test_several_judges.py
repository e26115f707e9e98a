"""Several judges over the same answers: their readings, how far they agree, and length beside."""

from math import nan
from pathlib import Path

import numpy as np
import pytest
import yaml

from rahf.artifacts import read_json, read_lines, write_lines
from rahf.cli import main
from rahf.comparison.judging import without_loops
from rahf.comparison.results import RowResult, judges_of
from rahf.evaluation.agreement import agreements, changes
from rahf.evaluation.scores import Judging
from rahf.recipe.comparison_options import CompareOptions
from rahf.recipe.evaluation_options import EvaluationOptions
from rahf.report.tables import judges_tables

# Agreement


def test_agreement_is_that_of_a_loop_over_answers_averaged_by_prompt():
    random = np.random.default_rng(0)
    given = {name: random.integers(-1, 2, size=(6, 9)).astype(float) for name in "abc"}
    given["b"][2, 3] = nan
    found = agreements(given)
    assert [pair["judges"] for pair in found] == [["a", "b"], ["a", "c"], ["b", "c"]]
    for pair in found:
        one, other = (given[name] for name in pair["judges"])
        by_prompt = []
        for prompt in range(9):
            both = [
                (x > 0) == (y > 0)
                for x, y in zip(one[:, prompt], other[:, prompt], strict=True)
                if x * y not in (0, -0.0) and not np.isnan(x * y)
            ]
            by_prompt.append(both)
        assert pair["answers"] == sum(map(len, by_prompt))
        shares = [sum(both) / len(both) for both in by_prompt if both]
        assert pair["mean"] == pytest.approx(np.mean(shares))
        assert pair["low"] < pair["mean"] < pair["high"]


def test_judges_that_call_nothing_changed_agree_on_nothing():
    [pair] = agreements({"a": np.zeros((2, 3)), "b": np.ones((2, 3))})
    assert pair == {"judges": ["a", "b"], "answers": 0, "prompts": 0}


def test_a_change_is_towards_what_is_wanted_and_missing_scores_stay_missing():
    found = changes([[1.0, None, 0.5]], [0.5, 0.0, None], -1)
    assert np.array_equal(found, [[-0.5, nan, nan]], equal_nan=True)


def test_an_empty_answer_counts_as_the_bases():
    assert without_loops(["", " \n", "a"], ["x", "y", "z"], 1.0) == ["x", "y", "a"]


def test_length_reads_an_answer_that_counts_as_the_bases_as_unchanged():
    def row(loss, refusals, *answers):
        texts = {"text_loss": [loss], "text_kl": [0.1], "text_tokens": [1]}
        point = {**texts, "strength": 1.0, "answers": list(answers)}
        return RowResult({}, [[{**point, "by_judge": {"refusal": refusals}}]], [])

    rows = {
        "base": row(1.0, [0.0] * 3, "four", "four", "four"),
        "dual": row(1.05, [1.0] * 3, " ", "a a a a a a", "longer"),
    }
    options = CompareOptions(judge=["refusal", "lexicon"], repetition_limit=0.5, budget=0.04)
    found = judges_of(options, [Judging(None, None, 1, name="refusal")], rows)
    [pair] = found["agreement"]
    assert (pair["judges"], pair["answers"], pair["mean"]) == (["refusal", "length"], 1, 1.0)
    reading = found["judges"]["length"]["dual"]
    assert reading["reached"]
    assert 0 < reading["change"] <= 2 / 3


# Options


@pytest.mark.parametrize("options", [CompareOptions, EvaluationOptions])
@pytest.mark.parametrize(
    ("judge", "problem"),
    [
        ([], "names no judge"),
        (["length", "length"], "'length' is named twice"),
        (["length", 3], "3 is not text"),
        (["length", "wit"], "'wit' is not one of"),
        (["length", "api:m"], "needs url"),
        (["references:"], "needs a file"),
    ],
)
def test_a_list_of_judges_that_makes_none_is_refused(options, judge, problem):
    with pytest.raises(ValueError, match=problem):
        options(judge=judge)


def test_the_options_name_all_judges():
    assert CompareOptions(judge="length").judges == ["length"]
    assert CompareOptions(judge=["length", "refusal"]).judges == ["length", "refusal"]
    assert EvaluationOptions(judge=None).judges == []
    assert EvaluationOptions(judge=["length", "choice:m"]).compares


# The table of a run


def test_a_run_with_one_judge_has_no_further_table():
    assert judges_tables({"base": {"judged_mean": 1.0}}) == []


def test_a_run_with_several_judges_shows_each_and_how_far_they_agree():
    means = {"a": {"judged_mean": 0.5, "judged_se": 0.1}, "b": {"judged_mean": None}}
    means["c"] = {"judged_mean": 1.0, "judged_se": None}  # of a single answer
    pair = {"judges": ["a", "b"], "answers": 7, "mean": 0.5, "low": 0.2, "high": 0.8}
    first, second = judges_tables({"base": {"judges": means, "agreement": [pair]}})
    assert first.splitlines()[-1].split("|")[2:5] == [" +0.50 ± 0.10 ", " - ", " +1.00 "]
    assert "| a and b | 50% [20%, 80%]" in second
    alike = {"a": means["a"], "b": {"judged_mean": 0.0, "judged_se": 0.0}}
    assert "b gives every answer the same score, 0, so it decides" in "".join(
        judges_tables({name: {"judges": alike, "agreement": [pair]} for name in ("base", "policy")})
    )


# The complete comparison


def test_kept_answers_are_judged_by_several_judges_without_a_model(
    compared, family, capsys, monkeypatch
):
    recipe = yaml.safe_load(compared.read_text())
    recipe["compare"] |= {"rows": {"base": {}, "sft": {}}, "trials": {}, "seeds": [0]}
    compared.write_text(yaml.safe_dump(recipe))
    assert main(["compare", str(compared)]) == 0
    out = Path("out/compare")
    single, alone = (out / "comparison.md").read_text(), read_json(out / "comparison.json")
    assert "agreement" not in alone
    assert alone.pop("command") == f"rahf compare {compared}"
    prompts = [line["prompt"] for line in read_lines(out / "answers.jsonl")]
    rows = [{"prompt": prompt, "right": ["w4"], "wrong": ["w5 w6"]} for prompt in prompts]
    write_lines(Path("references.jsonl"), rows)

    def refused(*_):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("rahf.comparison.run.load_base", refused)
    names = ["length", "regex:w1", "references:references.jsonl"]
    several = ["--compare.judge", str(names), "--compare.encoder", str(family.base)]
    capsys.readouterr()
    assert main(["compare", str(compared), *several]) == 0
    assert "measuring" not in capsys.readouterr().out
    text, found = (out / "comparison.md").read_text(), read_json(out / "comparison.json")
    assert text.startswith(single.strip())  # the first judge, as it is alone
    assert {key: found[key] for key in alone} == alone
    assert list(found["judges"]) == names
    assert found["judges"]["length"]["sft"] == alone["rows"]["sft"]["at_budget"]
    assert [pair["judges"] for pair in found["agreement"]] == [names[:2], names[::2], names[1:]]
    assert "by judge | length" in text
    assert "length and regex:w1" in text
    swapped = ["--compare.judge", str(names[1:]), "--compare.encoder", str(family.base)]
    assert main(["compare", str(compared), *swapped]) == 0
    assert list(read_json(out / "comparison.json")["judges"]) == [*names[1:], "length"]
    # References to all prompts, or an error before anything is trained.
    write_lines(Path("references.jsonl"), rows[:1])
    assert main(["compare", str(compared), *several]) == 2
    assert "no reference answers" in capsys.readouterr().err
