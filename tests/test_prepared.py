"""A second `rahf prepare` does nothing where nothing has changed, and everything where something
has.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_models import _CONFIGS, tiny_tokenizer

from rahf.cli import main
from rahf.plan.prepared import preparation_key, still_prepared
from rahf.recipe.validation import checked_recipe

TEMPLATE = "{% for message in messages %}{{ message['content'] + ' [EOS] ' }}{% endfor %}"


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A working folder whose recipe has been prepared once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    _CONFIGS["llama"]().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    Path("template.jinja").write_text(TEMPLATE)
    Path("pairs").mkdir()
    for split, count in (("train", 9), ("test", 3)):
        lines = [
            json.dumps({"prompt": "w2 w3", "chosen": "w4 " * (1 + row), "rejected": "w5 w6"})
            for row in range(count)
        ]
        Path(f"pairs/{split}.jsonl").write_text("\n".join(lines))
    keys = {
        "model_name_or_path": "model",
        "dataset_name": "pairs",
        "chat_template": "template.jinja",
        "output_dir": "out",
        "target_layers": [0, 2],
        "evaluation": {"judge": None},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(keys))
    assert main(["prepare", "recipe.yaml"]) == 0


def told(*overrides):
    return still_prepared(checked_recipe("recipe.yaml", overrides))


def test_a_second_start_says_where_the_rows_are_and_imports_nothing_heavy(prepared):
    script = (
        "import sys; from rahf.cli import main; main(['prepare', 'recipe.yaml']); "
        "print([name for name in ('torch', 'transformers', 'peft', 'datasets', 'accelerate') "
        "if name in sys.modules])"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    train, test, loaded = done.stdout.splitlines()
    assert train.startswith("train: 9 rows, in ")
    assert test.startswith("test: 3 rows, in ")
    assert "cache" in train
    assert loaded == "[]", done.stderr


def add_a_row():
    with Path("pairs/test.jsonl").open("a") as file:
        file.write('\n{"prompt": "w2", "chosen": "w4", "rejected": "w5"}')


def touch_the_data():
    os.utime("pairs/train.jsonl", (1, 1))


def change_the_tokenizer():
    path = Path("model/tokenizer.json")
    path.write_text(path.read_text().replace("w39", "w40"))
    os.utime(path)


def change_the_template():
    Path("template.jinja").write_text(TEMPLATE.replace("[EOS] ", "[EOS] w2 "))


def remove_rows():
    for path in Path("cache/rahf").glob("*.arrow"):
        path.unlink()


def remove_lengths():
    Path("out/lengths.json").unlink()


def add_code_to_the_model():
    Path("model/tokenization.py").touch()


CHANGES = (
    *(add_a_row, touch_the_data, change_the_tokenizer, change_the_template),
    *(remove_rows, remove_lengths, add_code_to_the_model),
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_prepared_anew(prepared, change):
    assert told() is not None
    change()
    assert told() is None
    assert main(["prepare", "recipe.yaml"]) == 0
    assert told() is not None


@pytest.mark.parametrize(
    "overrides",
    [
        ("--max_length", "300"),
        ("--max_prompt_length", "20"),
        ("--method", "scit"),
        ("--chat_template", TEMPLATE),
        ("--dataset_test_split", "null"),
        ("--output_dir", "elsewhere"),
    ],
)
def test_a_changed_recipe_is_prepared_anew(prepared, overrides):
    assert told() is not None
    assert told(*overrides) is None


def test_another_cache_and_another_form_of_rows_are_prepared_anew(prepared, monkeypatch):
    assert told() is not None
    with monkeypatch.context() as changed:
        changed.setenv("HF_DATASETS_CACHE", "other")
        assert told() is None
    with monkeypatch.context() as changed:
        changed.setattr("rahf.plan.prepared.TOKENIZATION_VERSION", 0)
        assert told() is None
    assert told() is not None


def test_the_hub_is_asked_every_time(prepared):
    assert preparation_key(checked_recipe("recipe.yaml")) is not None
    for key in ("dataset_name", "model_name_or_path"):
        assert preparation_key(checked_recipe("recipe.yaml", [f"--{key}", "org/name"])) is None


def test_a_mixture_and_a_single_file_are_known_too(prepared):
    parts = "[{path: pairs}, {path: pairs/test.jsonl, fraction: 0.5}]"
    for overrides in (
        ["--dataset_name", "pairs/train.jsonl", "--dataset_test_split", "null"],
        ["--dataset_name", "null", "--datasets", parts, "--dataset_test_split", "null"],
    ):
        assert told(*overrides) is None
        assert main(["prepare", "recipe.yaml", *overrides]) == 0
        assert told(*overrides).startswith("train: ")
        assert told() is None
    add_a_row()
    assert told(*overrides) is None
