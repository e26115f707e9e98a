"""The example scripts and the notebook of the documents run, on a tiny model."""

import importlib.util
import json
from pathlib import Path

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from tiny_recipes import WORDS, write_lines
from transformers import AutoTokenizer

from rahf.artifacts import read_lines

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
QUICK = {"max_steps": 2, "target_layers": "1-2", "retain_weight": 0.0, "use_cpu": True}
QUICK |= {"per_device_train_batch_size": 2, "disable_tqdm": True, "save_strategy": "no"}


def example(name):
    """Return an example script as a module, which runs nothing by itself."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pairs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"prompt": WORDS[n], "chosen": " ".join(WORDS[n + 2 : n + 5]), "rejected": WORDS[n + 9]}
        for n in range(6)
    ]
    write_lines(Path("pairs.jsonl"), rows)
    return Path("pairs.jsonl")


def rows_in(path):
    return Dataset.from_list(read_lines(path))


def test_plain_transformers_answers_with_the_merged_weights(family, pairs):
    script = example("with_transformers")
    script.align(str(family.base), rows_in(pairs), "out", **QUICK)
    assert isinstance(script.answer("out/merged", "w5 w6", tokens=3), str)
    assert not list(Path("out/merged").glob("adapter*"))
    check_card(Path("out"))


def check_card(folder):
    """Run the code of a card, from its folder's name to merged weights."""
    card = ModelCard.load(folder / "README.md").text.replace("path/of/this/folder", str(folder))
    blocks = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(block.replace("max_new_tokens=200", "max_new_tokens=2"), names)
    assert AutoTokenizer.from_pretrained("merged").eos_token == names["tokenizer"].eos_token


def test_an_adapter_by_trl_is_the_teacher_of_an_alignment(family, pairs):
    script = example("with_trl")
    few = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False}
    script.train_dpo(str(family.base), rows_in(pairs), "dpo", **few, disable_tqdm=True)
    trainer = script.align(str(family.base), rows_in(pairs), "dpo", "aligned", **QUICK)
    assert set(trainer.alignment.model.peft_config) == {"default", "preferred"}
    assert "RAHF towards a DPO teacher" in Path("aligned/README.md").read_text()


def test_a_judge_of_ones_own_scores_the_answers_of_a_run(tmp_path):
    script = example("own_judge")
    answers = [
        {"prompt": "a", "answers": {"base": "no", "policy": "yes!!"}},
        {"prompt": "b", "answers": {"base": "so!", "policy": "yes!"}},
    ]
    (tmp_path / "evaluation").mkdir()
    write_lines(tmp_path / "evaluation" / "answers.jsonl", answers)
    assert script.scores(tmp_path) == {"base": [0.0, 1.0], "policy": [2.0, 1.0]}
    assert len(read_lines(tmp_path / "evaluation" / "own_verdicts.jsonl")) == 4
    assert script.scores(tmp_path) == {"base": [0.0, 1.0], "policy": [2.0, 1.0]}


def test_the_notebook_runs_from_its_first_cell_to_its_last(family, pairs, capsys):
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    quick = {name: value for name, value in QUICK.items() if name != "disable_tqdm"}
    given = {"MODEL": str(family.base), "PAIRS": str(pairs), "HELD_OUT": str(pairs)}
    given |= {"PROMPT": "w5 w6", "OUTPUT": "out", "OPTIONS": quick, "NEW_TOKENS": 3}
    names = {}
    exec(code[0], names)
    assert {name for name in names if name.isupper()} == set(given)
    names |= given
    for cell in code[1:]:
        exec(cell, names)
    told = capsys.readouterr().out
    assert "eval_repr/reached:" in told
    assert told.index("before:") < told.index("after:") < told.index("1.0 ->")
