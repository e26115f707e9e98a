"""`--json` of validate, data and plan: what a program reads in place of the text."""

import json
from pathlib import Path

import pytest
import yaml

from rahf.cli import main

KEPT = 6


def printed(capsys, *arguments, status=0):
    capsys.readouterr()
    assert main([*arguments]) == status
    captured = capsys.readouterr()
    assert captured.out.isascii()
    return json.loads(captured.out), captured.err


def test_validate_prints_every_value(recipe_file, capsys):
    found, told = printed(capsys, "validate", "recipe.yaml", "--json", "--alpha", "3")
    assert told == ""
    assert found["valid"] is True
    assert found["problems"] == []
    assert (found["blocks"], found["layers"]) == (4, [1, 2])
    assert found["stages"] == ["positive", "negative", "alignment", "evaluation"]
    assert found["values"]["alpha"] == 3
    assert found["values"]["teachers"]["label_smoothing"] == 0.2
    assert found["values"]["learning_rate"] == 1e-3
    assert "alpha" in found["given"]
    assert "lora_alpha" not in found["given"]


def test_validate_prints_every_problem(recipe_file, capsys):
    keys = ["--alhpa", "3", "--target_layers", "99"]
    found, told = printed(capsys, "validate", "recipe.yaml", "--json", *keys, status=1)
    assert told == ""
    assert found["valid"] is False
    assert found["recipe"] == "recipe.yaml"
    assert len(found["problems"]) == 2
    assert any("did you mean alpha?" in problem for problem in found["problems"])


def test_data_prints_counts_and_lengths_of_each_split(recipe_file, capsys):
    pairs = Path("pairs/train.jsonl")
    pairs.write_text(pairs.read_text() + '{"prompt": "w2", "chosen": "w3", "rejected": ""}\n')
    found, _ = printed(capsys, "data", "recipe.yaml", "--json")
    assert list(found) == ["train", "test"]
    train = found["train"]
    assert (train["loaded"], train["kept"], train["shortened"]) == (KEPT + 1, KEPT, 0)
    assert train["chosen_longer"] == 1.0
    assert train["lengths"]["chosen"]["least"] <= train["lengths"]["chosen"]["most"]
    [dropped] = train["dropped"]
    assert (dropped["count"], dropped["first_rows"]) == (1, [KEPT])


def test_plan_prints_numbers_by_stage(recipe_file, capsys):
    found, _ = printed(capsys, "plan", "recipe.yaml", "--json")
    assert list(found["stages"]) == ["positive", "negative", "alignment"]
    stage = found["stages"]["alignment"]
    assert stage["steps"] == 3
    size = stage["bytes"]
    fullest = max(size["activations"], size["frozen"])
    kept = size["weights"] + size["gradients"] + size["optimiser"]
    assert size["total"] == pytest.approx(kept + fullest + size["process"])
    assert found["launch"]["engine"] == "single"
    assert found["lengths"] == {
        "measured": False,
        "max_prompt_length": found["lengths"]["max_prompt_length"],
        "max_length": found["lengths"]["max_length"],
        "mean_tokens": None,
    }
    assert found["fits"] is None
    printed(capsys, "data", "recipe.yaml", "--json")
    assert printed(capsys, "plan", "recipe.yaml", "--json")[0]["lengths"]["measured"] is True
    assert printed(capsys, "plan", "recipe.yaml", "--json", "--device_memory", "80")[0]["fits"]
    small = ["plan", "recipe.yaml", "--json", "--device_memory", "1e-6"]
    found, told = printed(capsys, *small, status=2)
    assert found["fits"] is False
    assert told.startswith("error: does not fit into --device_memory 1e-06 GiB")


def keys_of(value):
    """Return the names in a value, level by level; of a mapping of stages or splits, of each."""
    return {name: keys_of(inner) for name, inner in value.items()} if isinstance(value, dict) else 0


def test_the_samples_of_the_documents_have_the_keys_that_are_printed(recipe_file, capsys):
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    samples = [json.loads(part.partition("```")[0]) for part in text.split("```json")[1:]]
    commands = ("validate", "data", "plan")
    real = [printed(capsys, command, "recipe.yaml", "--json")[0] for command in commands]
    validate, data, plan = (
        [keys_of(sample), keys_of(found)] for sample, found in zip(samples, real, strict=True)
    )
    for figures in validate:
        del figures["values"]
    for figures in data:
        del figures["train"]["lengths"]
    assert validate[0] == validate[1]
    assert data[0]["train"] == data[1]["train"]
    assert plan[0]["stages"]["alignment"] == plan[1]["stages"]["alignment"]
    del plan[0]["stages"], plan[1]["stages"]
    assert plan[0] == plan[1]


def test_names_that_ascii_lacks_are_read_back(recipe_file, capsys):
    recipe = yaml.safe_load(recipe_file.read_text()) | {"output_dir": "schön/\u202e\x9b"}
    recipe_file.write_text(yaml.safe_dump(recipe))
    found, _ = printed(capsys, "validate", "recipe.yaml", "--json")
    assert found["output_dir"] == "schön/\u202e\x9b"
