"""Every key of a recipe with every odd value: problems or a recipe, never another error."""

import datetime
import json

import pytest
import yaml

from rahf.comparison.row_recipes import check_given_comparison
from rahf.recipe import model_files
from rahf.recipe.files import checked_recipe, not_read
from rahf.recipe.keys import FLAT, SECTIONS, full_name, names
from rahf.recipe.recipe import RecipeError
from rahf.recipe.summary import effective_values, given_values, summary
from rahf.recipe.training_arguments import training_annotations

ODD = {
    "list": [],
    "empty": "",
    "text": "hello world",
    "mapping": {},
    "date": datetime.date(2020, 1, 1),
    "infinite": float("inf"),
    "negative": -1,
    "huge": 10**30,
    "nested": [[1], {}],
    "null": None,
    "true": True,
    "escape": "\x1b[31mred\u202e",
}
KEYS = [*sorted(names(*FLAT)), *training_annotations()]
KEYS += [full_name(section, key) for section, cls in SECTIONS.items() for key in names(cls)]
KEYS += ["teachers.eval_steps", "teachers.save_steps", "teachers", "evaluation", "compare"]


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Write a valid recipe and the files that it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_files, "ask_hub", lambda *_: model_files.Finding(None, "offline"))
    config = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 99, "hidden_size": 8}
    config |= {"num_attention_heads": 2, "intermediate_size": 16}
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    recipe = {"model_name_or_path": "base", "dataset_name": "pairs.jsonl", "output_dir": "out"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "dataset_test_split": None}))
    return tmp_path / "recipe.yaml"


def judged(path, key, value):
    """Run `rahf validate`; return whether the recipe is accepted."""
    try:
        recipe = checked_recipe(
            path,
            {key: value},
            lambda r: [*check_given_comparison(r), *model_files.ask_for_names(r)[0]],
        )
    except RecipeError:
        return False
    not_read(recipe), summary(recipe), given_values(recipe), effective_values(recipe)
    return True


def test_an_odd_value_never_ends_in_an_internal_error(given):
    assert judged(given, "seed", 1)
    failed = {}
    for key in KEYS:
        for name, value in ODD.items():
            try:
                judged(given, key, value)
            except Exception as error:
                failed[f"{key}: {name}"] = f"{type(error).__name__}: {error}"
    assert failed == {}
