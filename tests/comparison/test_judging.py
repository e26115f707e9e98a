"""A comparison whose judge compares: what it is asked, what its words come to, what is not asked
twice.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from judge_server import server
from tiny_comparison import BASE, row

from rahf.artifacts import read_json, read_lines
from rahf.cli import main
from rahf.comparison.curves import curves_of, everything, line, points, read_at
from rahf.report.comparison import comparison_table, row_figures

# Missing scores


def test_a_prompt_is_left_out_where_either_side_is_missing():
    given, base = row(0.3, 0.1), BASE._replace(scores=np.zeros((1, 1, 20)))
    given.scores[0, 0, :5] = np.nan
    given.scores[:, :, 7] = 9.0
    base.scores[0, 0, 7] = np.nan
    for (_, change), expected in zip(
        line(given, base, everything(given), "loss", 1), (0.3, 0.6), strict=True
    ):
        assert change == pytest.approx(expected)


def test_a_seed_without_a_verdict_is_left_out_and_never_counts_as_zero():
    given = row(0.3, 0.1)
    given.scores[0, 1] = np.nan
    found = line(given, BASE, everything(given), "loss", 1)
    assert np.allclose(found, [(0.1, 0.3), (0.2, 0.6)])


def test_a_strength_without_a_verdict_is_no_point_of_the_curve():
    given = row(0.3, 0.1, noise=0.1)
    given.scores[:, 1] = np.nan
    assert [point.label for point in points(given, BASE, "loss", 1)] == ["1"]
    alone, _ = read_at({"row": given}, BASE, 0.15, "loss", 1)
    assert not alone["row"].reached
    assert alone["row"].low < alone["row"].change < alone["row"].high


def test_draws_in_which_nothing_can_be_read_are_left_out():
    given = row(0.3, 0.1)
    given.scores[:, :, 1:] = np.nan  # one prompt in twenty: more than a third of the draws miss it
    alone, _ = read_at({"row": given}, BASE, 0.1, "loss", 1)
    assert alone["row"][:3] == pytest.approx((0.3, 0.3, 0.3))


def test_a_row_without_a_verdict_has_no_change_and_the_others_keep_theirs():
    silent = row(0.3, 0.1)
    silent.scores[:] = np.nan
    rows = {"silent": silent, "row": row(0.3, 0.1)}
    alone, differences = read_at(rows, BASE, 0.1, "loss", 1)
    assert list(alone) == ["row"]
    assert differences == {}
    assert points(silent, BASE, "loss", 1) == []


def measured(scores, strength=1.0):
    return {
        "strength": strength,
        "answers": ["a b"] * len(scores),
        "scores": scores,
        "text_loss": [3.0],
        "text_kl": [0.1],
        "text_tokens": [1],
        "preference_margins": [],
    }


def test_the_table_counts_missing_verdicts_at_all_strengths_and_averages_the_others():
    base = [measured([0.5, 0.5])]
    seeds = [
        [measured([1, None]), measured([1, 1], 2.0)],
        [measured([None] * 2), measured([0, 0], 2.0)],
    ]
    figures = row_figures(seeds, [], base)
    assert figures["judged_mean"] == {"mean": 1}
    assert figures["verdicts_missing"]["mean"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    silent = row_figures([[measured([None, None])]], [], base)
    assert "judged_mean" not in silent
    rows = {"base": row_figures([base], [], base), "row": figures, "silent": silent}
    table = comparison_table(rows, "loss", 0.05, wins=True)
    assert "wins over base" in table
    assert "50%" in table
    assert "verdicts missing" in table
    assert "verdicts missing" not in comparison_table({"base": rows["base"]}, "loss", 0.05)
    assert np.isnan(curves_of(seeds).scores).sum() == 3


# The complete comparison


def parts(question):
    found = re.search(
        r"\[Query\]\n(.*)\n\[End of the query\].*\[Answer of A\]\n(.*)\n\[End of A\]"
        r".*\[Answer of B\]\n(.*)\n\[End of B\]",
        question,
        re.DOTALL,
    )
    return found.groups()


def longer(body):
    """Return the server's answer, which is undecided about one of the prompts."""
    query, first, second = parts(body["messages"][0]["content"])
    if query == "w3 w4":
        return "Hard to say."
    better = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return f'```json\n{{"reason": "length", "better": "{better}"}}\n```'


def expected_score(query, answer, base):
    if answer == base:
        return 0.5
    if query == "w3 w4":
        return None
    return 0.5 if len(answer) == len(base) else float(len(answer) > len(base))


def asks_api(path, url):
    recipe = yaml.safe_load(path.read_text())
    recipe["compare"] |= {
        "rows": {"urial": {}, "sft": {"learning_rate": 0.5}, "base": {}},
        "trials": {"sft": [{"max_steps": 1}, {"max_steps": 2}]},
        "seeds": [0],
        "judge": "api:wise",
        "url": url,
        "workers": 2,
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.slow
def test_a_comparison_by_an_api_goes_on_after_a_stop_and_requests_nothing_twice(compared, capsys):
    out, ok = Path("out/compare"), (200, {}, longer)
    with server(ok, ok, ok, (402, {}, "out of credit"), ok) as (url, requests):
        recipe = str(asks_api(compared, url))
        assert main(["compare", recipe]) == 2
        assert "out of credit" in capsys.readouterr().err
        kept = len(read_lines(out / "verdicts.jsonl"))
        assert main(["compare", recipe]) == 0
        told = capsys.readouterr().out
        asked = [body["messages"][0]["content"] for _, _, body in requests]
        assert main(["compare", recipe]) == 0
        assert len(requests) == len(asked)
        assert "measuring" not in capsys.readouterr().out
    verdicts = read_lines(out / "verdicts.jsonl")
    assert len(verdicts) == len(set(asked))
    # Asked again is what was refused, and what was under way then: two workers, two texts each.
    assert len(asked) - len(set(asked)) <= 4
    assert 1 <= kept < len(verdicts)
    assert {line["judge"] for line in verdicts} == {f"wise at {url}"}

    found = read_json(out / "comparison.json")
    assert (found["judge"], found["wanted_side"]) == (f"wise at {url}", 1)
    assert found["rows"]["base"]["judged_mean"] == {"mean": 0.5}
    assert "verdicts_missing" not in found["rows"]["base"]
    assert "wins over base" in told
    assert found["place"]["first_place_preferred"] == 0.5
    assert "The judge: both orders agree in " in (out / "comparison.md").read_text()
    answers = read_lines(out / "answers.jsonl")
    for line_ in answers:
        base = line_["answers"]["base"]
        for name, answer in line_["answers"].items():
            query = line_["prompt"][0]["content"]
            assert line_["scores"][name] == expected_score(query, answer, base)
    read = [each["scores"]["sft"] for each in answers]
    assert None in read
    assert found["rows"]["sft"]["verdicts_missing"]["mean"] > 0
    first, _ = (point for point in read_lines(out / "points.jsonl") if point["method"] == "sft")
    assert first["change"] == pytest.approx(
        np.mean([score for score in read if score is not None]) - 0.5
    )
    trials = read_json(out / "trials/sft.json")
    best = max(trials, key=lambda trial: trial["change"])["settings"]
    assert found["settings"]["sft"].items() >= best.items()
    assert (out / "tradeoff.png").stat().st_size > 0


@pytest.mark.parametrize("status", [401, 400])
def test_an_api_that_refuses_is_reported_before_anything_is_trained(compared, capsys, status):
    with server((status, {}, "no key")) as (url, requests):
        assert main(["compare", str(asks_api(compared, url))]) == 2
    assert f"status {status}" in capsys.readouterr().err
    assert requests
    assert not Path("out/compare/teachers").exists()
    assert not Path("out/compare/test").exists()
