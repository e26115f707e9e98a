"""What ships with the project is sound: recipes and pairs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rahf.comparison.row_recipes import check_given_comparison
from rahf.recipe.files import checked_recipe
from rahf.recipe.recipe import RecipeError, load_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted(ROOT.glob("recipes/*/*.yaml"))


def problems_of(path):
    try:
        checked_recipe(path, also=check_given_comparison)
    except RecipeError as error:
        return error.problems
    return ()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_recipe_is_valid_in_a_fresh_clone_or_names_what_to_run_first(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = {
        "model_name_or_path:": "models/SmolLM2-135M-Instruct",  # make quickstart fetches it
        "directions:": "(after warm.yaml)",
    }
    text = path.read_text()
    told = problems_of(path)
    assert [line for line in told if made.get(line.partition(" ")[0], "nothing") not in text] == []


@pytest.mark.parametrize("model", ["mistral-7b", "llama-3.1-8b"])
def test_the_published_recipes_hold_the_published_settings(model):
    dual, scit = (load_recipe(ROOT / f"recipes/{model}/{name}.yaml") for name in ("dual", "scit"))
    for recipe in (dual, scit):
        assert recipe.method.alpha == 5
        assert recipe.method.shift == "token"
        assert recipe.method.layer_scale == "none"
        assert recipe.method.positions == "response"
        assert recipe.data.split_between_stages
        assert (recipe.model.lora_r, recipe.model.lora_alpha) == (8, 16)
    assert (dual.method.reference, dual.training["learning_rate"]) == ("positive", 9e-6)
    assert (scit.method.reference, scit.training["learning_rate"]) == ("contrast", 3e-4)
    assert dual.training["max_steps"] * dual.training["per_device_train_batch_size"] == 2500 * 8


def test_the_shipped_pairs_pass_their_check():
    command = [sys.executable, "scripts/check_pairs.py", "recipes/data/tone"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_held_out_prompts_are_at_least_48_and_half_of_them_on_new_subjects():
    lines = (ROOT / "recipes/data/tone/test.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["split_kind"] for line in lines]
    assert len(kinds) >= 48
    assert kinds.count("new_subject") >= 24
