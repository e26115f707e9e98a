"""What ships with the project is sound: recipes and pairs, and the wheel that carries them."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
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


SOURCES = ("rahf", "recipes", "accelerate_configs", "scripts", "setup.cfg", "pyproject.toml")
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({folder!r}))"


def built(kind, source, folder):
    """Return the distribution that setuptools builds from a folder of sources."""
    code = BUILD.format(kind=kind, folder=str(folder))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a source distribution from a copy of the sources, and a wheel from that."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "copy"
    copy.mkdir()
    for name in (*SOURCES, "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    with tarfile.open(built("sdist", copy, folder)) as archive:
        archive.extractall(folder / "source", filter="data")
    [unpacked] = (folder / "source").iterdir()
    return built("wheel", unpacked, folder)


@pytest.mark.slow
def test_the_wheel_holds_what_ships(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [*ROOT.glob("recipes/*/*.yaml"), *ROOT.glob("accelerate_configs/*.yaml")]
    shipped += ROOT.glob("recipes/data/**/*.jsonl")
    assert {f"rahf/shipped/{path.relative_to(ROOT)}" for path in shipped} <= names
    assert {"rahf/py.typed", "rahf/generation/urial.md"} <= names
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("rahf/**/*.py")}
    assert modules <= names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"rahf"}


@pytest.mark.slow
def test_an_installed_wheel_runs_a_shipped_recipe_outside_of_the_repository(
    wheel, family, tmp_path
):
    site, place = tmp_path / "site", tmp_path / "place"
    place.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-compile", "--target", str(site), str(wheel)], check=True)

    def rahf(*words):
        environment = {**os.environ, "PYTHONPATH": str(site), "HF_HOME": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-m", "rahf", *words],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    recipe = "recipes/smollm2-135m/warm.yaml"
    tiny = ["--model_name_or_path", str(family.base), "--target_layers", "1-2", "--use_cpu"]
    tiny += ["--max_prompt_length", "24", "--max_length", "48", "--evaluation", "null"]
    tiny += ["--max_steps", "1", "--teachers.max_steps", "1"]
    assert "smollm2-135m/warm " in rahf("recipes", "list")
    assert f"wrote {recipe}" in rahf("recipes", "copy", "smollm2-135m/warm")
    assert rahf("validate", recipe, *tiny).startswith(f"ok: {recipe}")
    fsdp = rahf("plan", recipe, *tiny, "--accelerate_config", "fsdp2", "--num_processes", "2")
    assert "fsdp2, 2 processes" in fsdp
    rahf("align", recipe, *tiny)
    assert (place / "outputs/smollm2-135m/warm/adapter_model.safetensors").is_file()
