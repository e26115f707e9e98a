"""The stage `evaluation`: any judge scores the answers, and what is kept of it."""

from pathlib import Path

import pytest
from judge_server import server
from tiny_models import classifier
from tokenizers_for_tests import chatml_tokenizer

from rahf.artifacts import read_json, read_lines
from rahf.judges.rules import rule
from rahf.pipeline import evaluation
from rahf.pipeline.run import results_text, run_pipeline
from rahf.recipe.files import checked_recipe
from rahf.recipe.recipe import RecipeError

MODELS = ["base", "positive", "negative", "policy"]
OUT = Path("out/evaluation")
JUDGED = ("judged_mean", "judged_se", "shows_wanted", "shows_opposite")


@pytest.fixture
def aligned(recipe_file, family):
    """Align the recipe with given teachers; `evaluated` runs its last stage."""
    given = {f"teachers.{name}": str(family.adapters[name]) for name in ("positive", "negative")}
    run_pipeline(checked_recipe(recipe_file, given), stage="alignment")

    def evaluated(**options):
        keys = {f"evaluation.{name}": value for name, value in options.items()}
        run_pipeline(checked_recipe(recipe_file, given | keys), stage="evaluation")
        return read_json(Path("out/metrics.json"))["models"], read_lines(OUT / "answers.jsonl")

    return evaluated


@pytest.mark.parametrize("judge", ["lexicon", "length", "refusal", "regex:w1"])
def test_a_rule_scores_every_answer_and_keeps_no_verdicts(aligned, judge):
    models, answers = aligned(judge=judge)
    assert list(models) == MODELS
    for name, row in models.items():
        texts = [answer["answers"][name] for answer in answers]
        scores = rule(judge).scores(texts)
        assert [answer["scores"][name] for answer in answers] == scores
        assert row["judged_mean"] == pytest.approx(sum(scores) / 3)
        assert (row["shows_wanted"] is None) == (judge == "length")
        assert row["judge"] == judge
        assert row["wanted"] in ("higher", "lower")
    shown = (results_text(Path("out")), Path("out/README.md").read_text().replace("\\", ""))
    assert all(f"Answers: 3 a model. Judge: {judge} (" in text for text in shown)
    assert not (OUT / "verdicts.jsonl").exists()


def test_an_empty_answer_counts_as_the_bases(aligned, monkeypatch):
    measure = evaluation.measure_models

    def silenced(*given):
        measured = measure(*given)
        measured["policy"].answers[1] = " "
        return measured

    monkeypatch.setattr(evaluation, "measure_models", silenced)
    _, answers = aligned(judge="length")
    assert answers[1]["answers"]["policy"] == " "
    assert answers[1]["scores"]["policy"] == answers[1]["scores"]["base"] > 1


def test_several_judges_are_beside_the_first_and_agree_with_each_other_and_length(aligned):
    alone, answers = aligned(judge="lexicon")
    (OUT / "stage.json").unlink()
    models, again = aligned(judge=["lexicon", "regex:w1"])
    by_judge = [answer.pop("by_judge") for answer in again]
    assert again == answers
    assert [each["lexicon"] for each in by_judge] == [answer["scores"] for answer in answers]
    for answer, each in zip(answers, by_judge, strict=True):
        assert each["regex:w1"] == {name: "w1" in said for name, said in answer["answers"].items()}
    agreement = [pair for row in models.values() for pair in row.pop("agreement", ())]
    for name, row in models.items():
        judges = row.pop("judges")
        assert row == alone[name]
        assert judges["lexicon"] == {key: row[key] for key in judges["lexicon"]}
        texts = [answer["answers"][name] for answer in answers]
        assert judges["regex:w1"]["judged_mean"] == sum("w1" in text for text in texts) / 3
    assert [pair["judges"] for pair in agreement] == [
        ["lexicon", "regex:w1"],
        ["lexicon", "length"],
        ["regex:w1", "length"],
    ]


def test_without_a_judge_answers_have_no_scores(aligned):
    models, answers = aligned(judge=None)
    for row in models.values():
        assert [row[name] for name in JUDGED] == [None] * 4
        assert row["answers"] == 3
    assert [list(answer) for answer in answers] == [["prompt", "answers"]] * 3


def test_a_reward_model_scores_every_answer_with_the_label_that_is_asked_for(aligned):
    classifier(labels=3).save_pretrained("reward")
    chatml_tokenizer().save_pretrained("reward")
    models, answers = aligned(judge="reward:reward", label=2)
    for name, row in models.items():
        scores = [answer["scores"][name] for answer in answers]
        assert row["judged_mean"] == pytest.approx(sum(scores) / 3)
        assert row["shows_wanted"] is None  # a reward has no neutral score
    [judge] = {line["judge"] for line in read_lines(OUT / "verdicts.jsonl")}
    assert judge.endswith(", label 2")


def prefers_longer(body):
    _, first, second = (
        part.split("\n[End")[0] for part in body["messages"][0]["content"].split("]\n")[1:6:2]
    )
    better = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return f'{{"better": "{better}"}}'


def test_an_api_compares_with_the_bases_answer_and_is_asked_nothing_twice(aligned):
    with server((200, {}, prefers_longer)) as (url, requests):
        models, answers = aligned(judge="api:wise", url=url, workers=2)
        asked = [body["messages"][0]["content"] for _, _, body in requests]
        assert len(asked) == len(set(asked)) == len(read_lines(OUT / "verdicts.jsonl"))
        (OUT / "stage.json").unlink()
        again = aligned(judge="api:wise", url=url, workers=1)
        assert len(requests) == len(asked)
        assert again == (models, answers)
    assert [models["base"][name] for name in JUDGED] == [None] * 4
    seen = set()
    for answer in answers:
        assert list(answer["scores"]) == MODELS[1:]
        base = len(answer["answers"]["base"])
        for name, score in answer["scores"].items():
            size = len(answer["answers"][name])
            assert score == (0.5 if size == base else float(size > base))
            seen.add(score)
    assert len(seen) > 1
    for name in MODELS[1:]:
        scores = [answer["scores"][name] for answer in answers]
        assert models[name]["judged_mean"] == pytest.approx(sum(scores) / 3)
        assert models[name]["shows_wanted"] == scores.count(1) / 3
        assert models[name]["shows_opposite"] == scores.count(0) / 3


def test_a_verdict_that_cannot_be_read_is_missing_and_shown(aligned):
    with server((200, {}, "Hard to say.")) as (url, _):
        models, answers = aligned(judge="api:wise", url=url)
    ties = [
        name
        for answer in answers
        for name, text in answer["answers"].items()
        if name != "base" and text == answer["answers"]["base"]
    ]
    for name in MODELS[1:]:
        share = 1 - ties.count(name) / 3
        assert models[name].get("verdicts_missing", 0) == pytest.approx(share)
        assert {answer["scores"][name] for answer in answers} <= {None, 0.5}
    assert "verdicts missing" in results_text(Path("out"))


def test_a_server_that_refuses_ends_the_stage_before_anything_is_measured(aligned, monkeypatch):
    monkeypatch.setattr("rahf.pipeline.evaluation.measure_models", lambda *given: 1 / 0)
    with (
        server((401, {}, "no key")) as (url, _),
        pytest.raises(ValueError, match="status 401"),
    ):
        aligned(judge="api:wise", url=url)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"judge": "taste"}, "evaluation.judge: 'taste' is not one of lexicon, length"),
        ({"judge": "api:wise"}, "evaluation.judge 'api:wise' needs url"),
        ({"judge": "reward:./nothing"}, "evaluation.judge: ./nothing does not exist"),
        (
            {"judge": "choice:org/model", "models": ["policy"]},
            r"evaluation.models: \['policy'\] has no base, whose answers",
        ),
    ],
)
def test_a_judge_that_cannot_work_is_reported_by_the_recipe(recipe_file, options, problem):
    keys = {f"evaluation.{name}": value for name, value in options.items()}
    with pytest.raises(RecipeError, match=problem):
        checked_recipe(recipe_file, keys)
