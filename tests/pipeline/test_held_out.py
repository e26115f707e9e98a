"""The share of the training prompts that is held out where the data has no test split."""

import json
from pathlib import Path

import datasets
import pytest

from rahf.data.pairs import without_held_out
from rahf.data.sources import load_pairs
from rahf.pipeline import inputs
from rahf.pipeline.inputs import load_split, load_tokenizer, measured_split, train_rows
from rahf.pipeline.recipe_data import describe_data
from rahf.pipeline.run import run_pipeline, stage_record
from rahf.recipe.files import checked_recipe
from rahf.recipe.held_out import HELD_OUT, held_out_split

# The README's recipe: one file, no keys of an evaluation.
README = {
    "dataset_name": "pairs/train.jsonl",
    "dataset_test_split": None,
    "evaluation": {"max_new_tokens": 3},
}


def pairs_of(path, prompts):
    rows = [
        {"prompt": prompt, "chosen": f"yes {row}", "rejected": f"no {row}"}
        for row, prompt in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_pairs(path)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_share_is_held_out_by_prompt_and_the_same_one_every_time(cached):
    prompts = [f"p{row // 2}" for row in range(80)]
    pairs = pairs_of(cached / "pairs.jsonl", prompts)
    left, held = without_held_out(pairs, 0.1, 200)
    of_left, of_held = ({chat[0]["content"] for chat in part["prompt"][:]} for part in (left, held))
    assert (len(held), len(left), len(of_held)) == (8, 72, 4)
    assert not of_left & of_held
    again = without_held_out(pairs_of(cached / "more.jsonl", [*prompts, "new"]), 0.1, 200)[1]
    assert {chat[0]["content"] for chat in again["prompt"][:]} - {"new"} <= of_held
    assert len(without_held_out(pairs, 0.5, 3)[1]) == 6  # at most three prompts


@pytest.mark.parametrize(("prompts", "held"), [(["a"] * 20, 1), (["a", "b"], 1), (["a"], 0)])
def test_small_data_keeps_a_pair_to_train_on(cached, prompts, held):
    left, out = without_held_out(pairs_of(cached / "pairs.jsonl", prompts), 0.05, 200)
    assert (len(left), len(out)) == (len(prompts) - held, held)


@pytest.mark.parametrize(
    ("keys", "split"),
    [
        ({}, "test"),
        ({"dataset_test_split": None}, HELD_OUT),
        ({"dataset_test_split": None, "test_share": 0}, None),
        ({"dataset_name": "pairs/train.jsonl"}, HELD_OUT),
        ({"dataset_name": None, "datasets": [{"path": "pairs"}]}, HELD_OUT),
    ],
)
def test_what_is_measured_on_is_a_split_or_a_share(recipe_file, keys, split):
    recipe = checked_recipe(recipe_file, keys)
    assert held_out_split(recipe.data) == measured_split(recipe) == split
    tokenizer = load_tokenizer(recipe)
    train, test = train_rows(recipe, tokenizer, step=2), inputs.test_rows(recipe, tokenizer)
    if split == HELD_OUT:
        assert not {*train["row"]} & {*test["row"]}
        assert len(train) + len(test) == len(load_split(checked_recipe(recipe_file), "train"))
    else:
        assert len(test or ()) == (3 if split else 0)


@pytest.mark.parametrize(
    ("splits", "keys", "split"),
    [
        (["train"], {}, HELD_OUT),
        (["train"], {"test_share": 0}, None),
        (["train", "test"], {}, "test"),
        (["train", "dev"], {}, "no split 'test'"),
        (["train"], {"dataset_test_split": "dev"}, "no split 'dev'"),
        (["learn"], {}, "no split 'train'"),
    ],
)
def test_data_of_the_hub_with_one_split_holds_a_share_out(
    recipe_file, monkeypatch, splits, keys, split
):
    rows = [{"prompt": f"w{row}", "chosen": "w2", "rejected": "w3"} for row in range(20)]

    def load_dataset(path, name, split, cache_dir):
        if split not in splits:  # as datasets reports it
            raise ValueError(f'Unknown split "{split}". Should be one of {splits}.')
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: splits)
    recipe = checked_recipe(recipe_file, {"dataset_name": "org/pairs", **keys})
    if str(split).startswith("no split"):
        with pytest.raises(ValueError, match=f"org/pairs has {split}. It has: {', '.join(splits)}"):
            describe_data(recipe)
        return
    assert measured_split(recipe) == split
    assert ("held out (5% of" in describe_data(recipe)) == (split == HELD_OUT)


def test_the_readmes_recipe_ends_with_figures_and_answers(recipe_file, capsys):
    recipe = checked_recipe(recipe_file, README)
    run_pipeline(recipe)
    table = capsys.readouterr().out
    models = json.loads(Path("out/metrics.json").read_text())["models"]
    for row in models.values():
        assert row["answers"] == 1
        assert 0 <= row["preference_accuracy"] <= 1
    assert "preference accuracy" in table
    [line] = Path("out/evaluation/answers.jsonl").read_text().splitlines()
    held = load_split(recipe, HELD_OUT)["prompt"][0]
    assert json.loads(line)["prompt"] == held[-1]["content"]
    assert "reference accuracy" in Path("out/README.md").read_text()


def test_held_out_pairs_are_reported(recipe_file):
    text = describe_data(checked_recipe(recipe_file, README))
    assert "held out (5% of the training prompts)" in text


def test_a_stage_that_was_trained_on_all_rows_is_not_one_that_holds_a_share_out(recipe_file):
    recipe = checked_recipe(recipe_file, README)
    stage_record(recipe, "positive").finish()
    path = Path("out/teachers/positive/stage.json")
    record = json.loads(path.read_text())
    del record["settings"]["test_share"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"test_share: 0\.0 there, 0\.05 now"):
        stage_record(recipe, "positive").is_complete()
    assert stage_record(checked_recipe(recipe_file, {**README, "test_share": 0}), "positive")
