"""The rows of a comparison as recipes: every problem of them at once, before anything is run."""

import json
from pathlib import Path

import pytest
import yaml

from rahf.artifacts import write_lines
from rahf.cli import main
from rahf.comparison.row_recipes import check_comparison, check_given_comparison, row_run
from rahf.recipe.files import checked_recipe
from rahf.recipe.recipe import Recipe, RecipeError, load_recipe

METHOD_KEYS = (
    *("alpha", "response_source", "sft_weight", "align_weight", "pairs_together", "dpo_weight"),
)
"""Keys whose default depends on the method."""


@pytest.fixture
def write(recipe_file):
    def write(compare=None, **keys) -> Path:
        recipe = yaml.safe_load(recipe_file.read_text()) | keys
        if compare is not None:
            recipe["compare"] = {"judge": "length", **compare}
        recipe_file.write_text(yaml.safe_dump(recipe))
        return recipe_file

    return write


def problems(path, capsys) -> list[str]:
    """Return the problems that `rahf validate` reports."""
    status = main(["validate", str(path)])
    told = capsys.readouterr().err.splitlines()
    assert status == (1 if told else 0)
    return [line.removeprefix("- ") for line in told[1:]]


def compared(*rows, trials=None, **more):
    named = {name: {} for name in rows if isinstance(name, str)}
    given = {name: keys for row in rows if isinstance(row, dict) for name, keys in row.items()}
    return {"rows": {"base": {}, **named, **given}, "trials": trials or {}, **more}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"dual": {"alfa": 3}}, "rows.dual: alfa: unknown key, did you mean alpha?"),
        ({"dual": {"alpha": "big"}}, "rows.dual: alpha: 'big' is not"),
        ({"dual": {"retain_weight": -1}}, "rows.dual: retain_weight: -1 is out of range"),
        ({"dual": {"shift": "mean", "alpha": 0}}, "rows.dual: alpha: 0 leaves every state"),
        ({"dual": {"reference": "contrast"}}, "rows.dual: reference: contrast is a teacher of"),
        ({"dual": {"target_layers": 9}}, "rows.dual: target_layers: 9 reaches block 9, but"),
        ({"dual": {"teachers.alfa": 1}}, "rows.dual: teachers.alfa: unknown key"),
        (
            {"dual": {"tail_tokens.x": 1}},
            "rows.dual: tail_tokens.x: tail_tokens is 2, which has no",
        ),
        ({"dual": {"retain_dataset_name": "no.jsonl", "retain_weight": 1}}, "no.jsonl does not"),
        ({"dual": {3: 4}}, "rows.dual: 3: a key must be text"),
        ({"dual": {"method": "scit"}}, "rows.dual: method: cannot be set by a row, the row's name"),
        ({"dual": {"seed": 3}}, "rows.dual: seed: cannot be set by a row, compare.seeds sets it"),
        ({"dual": {"evaluation.judge": None}}, "rows.dual: evaluation.judge: cannot be set"),
        ({"dual": {"beta": 0.1}}, "rows.dual: beta: is not a key of a recipe: use dpo_beta"),
        ({"dpo": {"beta": "a"}}, "rows.dpo: beta: 'a' is not a number"),
        ({"dpo": {"beta": 0}}, "rows.dpo: beta: 0 is out of range"),
        ({"direction": {}}, "rows.direction: method: direction needs directions"),
        ({"direction": {"directions": "none"}}, "rows.direction: directions: none does not exist"),
        ({"urial": {"alpha": 2}}, "rows.urial: such a row is not trained, so it reads no keys"),
        ({5: {}}, "rows: 5 is not text"),
    ],
)
def test_what_is_wrong_with_a_row_is_reported_with_its_name(write, capsys, row, problem):
    [told] = problems(write(compared(row)), capsys)
    assert told.startswith("compare.rows")
    assert problem in told


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"judge": "taste"}, "compare.judge: 'taste' is not one of lexicon, length"),
        ({"judge": "choice:"}, "compare.judge: 'choice:' needs a model"),
        ({"judge": "regex:("}, "compare.judge: 'regex:(': no regular expression"),
        ({"judge": "api:m"}, "compare.judge 'api:m' needs url"),
        ({"judge": "api:m", "url": "host:80"}, "compare.url 'host:80' does not begin with http"),
        ({"judge": "reward:pairs/nothing"}, "compare.judge: pairs/nothing does not exist"),
        ({"judge": "choice:./nothing"}, "compare.judge: ./nothing does not exist"),
        ({"workers": 0}, "compare.workers: 0 is out of range"),
        ({"label": -1}, "compare.label: -1 is out of range"),
    ],
)
def test_what_is_wrong_with_the_judge_is_reported(write, capsys, options, problem):
    [told] = problems(write({**compared("sft"), **options}), capsys)
    assert problem in told


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"encoder": "./nono"}, "compare.encoder: ./nono does not exist"),
        ({}, "compare.judge: references.jsonl has no reference answers to 1 of the 2 prompts"),
    ],
)
def test_the_files_of_a_judge_are_read_as_those_of_the_evaluation(
    write, capsys, tmp_path, monkeypatch, options, problem
):
    monkeypatch.chdir(tmp_path)
    prompts = [{"prompt": "p1"}, {"prompt": "p2"}]
    references = [{**prompt, "right": ["yes"], "wrong": "no"} for prompt in prompts]
    write_lines(tmp_path / "prompts.jsonl", prompts)
    write_lines(tmp_path / "references.jsonl", references if options else references[:1])
    path = write({**compared("sft"), "judge": "references:references.jsonl", **options})
    given = yaml.safe_load(path.read_text())
    given["evaluation"] = {**given.get("evaluation", {}), "prompts": "prompts.jsonl"}
    path.write_text(yaml.safe_dump(given))
    [told] = problems(path, capsys)
    assert told.startswith(problem)


def test_a_judge_that_can_only_be_known_elsewhere_is_accepted(write, capsys):
    for options in ({"judge": "api:m", "url": "http://h/v1"}, {"judge": "choice:Qwen/Qwen3-8B"}):
        assert problems(write({**compared("sft"), **options}), capsys) == []


def test_all_problems_of_all_rows_trials_and_the_recipe_are_reported_at_once(write, capsys):
    trials = {
        "dual": [{"alpha": 2}, {"alfa": 3}, {"alpha": "big"}],
        "sft": [{}, {"max_steps": "x"}, {"learning_rate": "2e-3"}],
    }
    rows = compared("dual", {"sft": {"lora_r": 0}}, "dpo", trials=trials, judge="vibes")
    assert sorted(problems(write(rows, learning_rat=1, dtype="int4"), capsys)) == [
        "compare.judge: 'vibes' is not one of lexicon, length, refusal, regex:PATTERN, "
        "reward:NAME, references:FILE, choice:NAME, api:MODEL",
        "compare.rows.sft: lora_r: 0 is out of range, it must be at least 1 and below 65536",
        "compare.trials.dual[1]: alfa: unknown key, did you mean alpha?",
        "compare.trials.dual[2]: alpha: 'big' is not a number or one of auto",
        "compare.trials.sft[1]: max_steps: 'x' is not a whole number",
        "dtype: 'int4' is not one of auto, float32, bfloat16, float16",
        "learning_rat: unknown key, did you mean learning_rate?",
    ]


def test_a_problem_of_the_recipe_itself_is_not_told_again_for_every_row(write, capsys):
    path = write(compared("dual", "scit"), sft_weight=-1, target_layers=30, learning_rate="x")
    assert [line.split(":")[0] for line in problems(path, capsys)] == [
        "sft_weight",
        "learning_rate",
        "target_layers",
    ]


def test_what_a_row_lacks_may_be_in_all_of_its_trials(write, capsys):
    Path("directions").mkdir()
    tried = [{"directions": "directions"}, {"directions": "directions", "alpha": 3}]
    assert problems(write(compared("direction", trials={"direction": tried})), capsys) == []
    [told] = problems(write(compared("direction", trials={"direction": [tried[0], {}]})), capsys)
    assert told.startswith("compare.trials.direction[1]: method: direction needs directions")


def test_a_comparison_without_anything_to_measure_on_is_reported(write, capsys):
    assert problems(write(compared("sft"), dataset_test_split=None), capsys) == []  # test_share
    [told] = problems(write(compared("sft"), dataset_test_split=None, test_share=0), capsys)
    assert "set test_share above 0, or for a single file dataset_train_split: train[:90%]" in told
    [told] = problems(
        write(compared("sft"), test_share=0.1, evaluation={"unrelated_text": None}), capsys
    )
    assert "evaluation.unrelated_text to a file of records with a `text` each" in told


def test_the_lexicon_has_to_be_there(write, monkeypatch):
    recipe = load_recipe(write(compared("sft", judge="lexicon")))
    assert check_comparison(recipe) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert any("rahf[judges]" in line for line in check_comparison(recipe))


def test_a_recipe_without_keys_of_a_comparison_is_not_checked_for_one(write, capsys):
    path = write(dataset_test_split=None, test_share=0)
    assert problems(path, capsys) == []
    recipe = load_recipe(path)
    assert check_given_comparison(recipe) == []
    assert check_comparison(recipe) != []


def test_a_faulty_comparison_does_not_keep_a_recipe_from_its_other_commands(write):
    assert isinstance(checked_recipe(write(compared({"dual": {"alfa": 1}}))), Recipe)


def test_the_rows_of_every_kind_are_recipes(write, capsys):
    rows = compared("urial", "sft", "dpo", "lorra", "scit", "dual", "dual-more")
    keys = {"eval_strategy": "steps", "load_best_model_at_end": True}  # of the alignment alone
    path = write(rows, **keys)
    assert problems(path, capsys) == []
    run = row_run(load_recipe(path), "dpo", {"beta": "2e-1", "lora_r": 4}, 7, Path("there"))
    assert (run.kind, run.beta, run.recipe.model.lora_r) == ("dpo", 0.2, 4)
    assert run.recipe.training["seed"] == 7
    assert run.recipe.output_dir == Path("there")
    assert not keys.keys() & run.recipe.training.keys()


@pytest.mark.parametrize(
    ("keys", "lorra", "dual"),
    [
        ({}, (6, "chosen", 2, 0.25, False, 0), (4, "both", 0, 1, True, 1)),
        (
            {"method": "lorra", "reference": "base"},
            (6, "chosen", 2, 0.25, False, 0),
            (4, "both", 0, 1, True, 1),
        ),
        ({"alpha": 3}, (3, "chosen", 2, 0.25, False, 0), (3, "both", 0, 1, True, 1)),
        (
            {"response_source": "both", "sft_weight": 1},
            (6, "both", 1, 0.25, False, 0),
            (4, "both", 1, 1, True, 1),
        ),
        ({"align_weight": 1}, (6, "chosen", 2, 1, False, 0), (4, "both", 0, 1, True, 1)),
        (
            {"method": "rmu", "target_layers": "1-2"},
            (6, "chosen", 2, 0.25, False, 0),
            (4, "both", 0, 1, True, 1),
        ),
    ],
    ids=str,
)
def test_a_row_has_the_defaults_of_its_own_method_where_the_recipe_omits_a_key(
    write, keys, lorra, dual
):
    path = write(compared("lorra", "dual"))
    given = yaml.safe_load(path.read_text())
    for key in (*METHOD_KEYS, "teachers"):
        given.pop(key, None)
    path.write_text(yaml.safe_dump(given | keys))
    for name, own in (("lorra", lorra), ("dual", dual)):
        made = row_run(load_recipe(path), name, {}, 0, Path("there")).recipe.method
        assert tuple(getattr(made, key) for key in METHOD_KEYS) == own
        assert made.layer_scale == "shift"


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_row_that_aligns_nothing_needs_no_even_batch(write, name):
    recipe = load_recipe(write(compared(name), method="dual"))
    run = row_run(recipe, name, {"per_device_train_batch_size": 3}, 0, Path("there"))
    assert run.recipe.training["per_device_train_batch_size"] == 3


def test_a_row_that_is_no_recipe_raises_with_its_name(write):
    recipe = load_recipe(write(compared("dual")))
    with pytest.raises(RecipeError, match="compare: row dual") as error:
        row_run(recipe, "dual", {"alfa": 1, "seed": 3}, 0, Path("x"))
    assert len(error.value.problems) == 2


def test_a_recipe_as_it_was_run_is_a_copy(write):
    recipe = load_recipe(write(compared("dual")))
    recipe.as_dict()["compare"]["rows"]["dual"]["alpha"] = 9
    assert recipe.compare.rows["dual"] == {}
    assert json.dumps(recipe.as_dict())
