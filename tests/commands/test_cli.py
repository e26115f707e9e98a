"""The command line, the checks against files, and what importing rahf costs."""

import argparse
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import yaml
from tqdm import tqdm

import rahf.cli
from rahf.cli import COMMANDS, OTHER_COMMANDS, main
from rahf.commands.options.parsers import CommandParser, plain_command
from rahf.commands.table import every_command
from rahf.data.hub import Finding
from rahf.recipe.keys import every_key
from rahf.report.terminal import is_quiet

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "trl")
PAIR = {"prompt": "How was it?", "chosen": "Lovely.", "rejected": "Dreadful."}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Make the current folder, with a model of 12 blocks, pairs and prompts."""
    monkeypatch.chdir(tmp_path)
    save("model/config.json", {"num_hidden_layers": 12})
    for split in ("train", "test"):
        save_lines(f"pairs/{split}.jsonl", [PAIR, PAIR])
    save_lines("prompts.jsonl", [{"prompt": "How is it?"}])
    return tmp_path


def save(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content if isinstance(content, str) else json.dumps(content))


def save_lines(path, rows):
    save(path, "".join(json.dumps(row) + "\n" for row in rows))


def recipe(**keys):
    given = {
        "model_name_or_path": "model",
        "dataset_name": "pairs",
        "output_dir": "out",
        "max_steps": 3,
        **keys,
    }
    save("recipe.yaml", yaml.safe_dump(given))
    return "recipe.yaml"


def told(capsys, **keys):
    """Return the problems that `rahf validate` reports."""
    assert main(["validate", recipe(**keys)]) == 1
    title, *lines = capsys.readouterr().err.splitlines()
    count = int(title.split()[-2])
    assert len(lines) == count
    return [line.removeprefix("- ") for line in lines]


def python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    ).stdout


def test_importing_rahf_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import rahf; dir(rahf); rahf.load_recipe;"
        f"print(time.perf_counter() - start, [name for name in {HEAVY} if name in sys.modules])"
    )
    seconds, loaded = python(code).split(maxsplit=1)
    assert loaded.strip() == "[]"
    assert float(seconds) < 0.5


def test_rahf_reports_its_names_and_refuses_others():
    import rahf

    assert {"RAHFTrainer", "RAHFConfig", "Directions", "load_recipe"} <= set(dir(rahf))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rahf.nothing


def test_validate_is_fast_and_loads_nothing_heavy(place):
    code = (
        "import sys; from rahf.cli import main; status = main(['validate', 'recipe.yaml']);"
        f"print(status, [name for name in {HEAVY} if name in sys.modules])"
    )
    recipe()
    start = time.perf_counter()
    lines = python(code).splitlines()
    assert time.perf_counter() - start < 2
    assert lines[-1] == "0 []"


def test_validate_reports_what_the_recipe_will_do(place, capsys):
    assert main(["validate", recipe(method="scit", target_layers="3-5"), "--alpha", "4"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[: told.index("")] == [
        "ok: recipe.yaml",
        "  method   scit, reference base, alpha 4, response_source chosen; weights: align",
        "           1, retain 0.5, sft 2",
        "  model    model, target layers 3, 4, 5 of 12",
        "  data     pairs",
        "  held out split test",
        "  stages   contrast (steps: 3), directions, alignment (steps: 3), evaluation",
        "  results  out",
    ]


def shown(text):
    """Return {key: its value and the mark of a default} of what `rahf validate` prints."""
    lines, found = text.partition("\n\nModel\n")[2].splitlines(), {}
    for line in lines:
        if line.startswith(" " * 30):
            found[name] += f" {line.strip()}"
        elif line.startswith("  "):
            name, _, found[name] = line.strip().partition(" ")
    return {name: value.strip() for name, value in found.items()}


def test_validate_prints_the_value_of_every_key_and_where_it_comes_from(place, capsys):
    keys = {"method": "lorra", "teachers": {"max_steps": 9}, "evaluation": {"judge": None}}
    assert main(["validate", recipe(**keys), "--alpha", "4", "--align_weight", "0.25"]) == 0
    text = capsys.readouterr().out
    found = shown(text)
    assert found["alpha"] == "4"  # of the command line
    assert found["align_weight"] == "0.25"  # given, though as by default
    assert found["sft_weight"] == "2.0 (default of lorra)"
    assert found["response_source"] == "chosen (default of lorra)"
    assert found["dpo_weight"] == "0.0 (default)"
    assert found["dataset_name"] == "pairs"
    assert found["evaluation.judge"] == "null"
    assert found["evaluation.max_new_tokens"] == "48 (default)"
    assert found["teachers.max_steps"] == "9"
    assert found["teachers.label_smoothing"] == "0.2 (default)"
    assert found["compare.seeds"] == "[0, 1, 2] (default)"
    assert found["learning_rate"] == "0.001 (default)"
    assert found["max_steps"] == "3"
    assert found["instructions"].endswith("unhelpful, dishonest and harmful.'} (default)")
    assert all(len(line) <= 80 for line in text.partition("Every key")[2].splitlines())


def test_validate_marks_training_keys_that_the_method_sets(place, capsys):
    assert main(["validate", recipe(method="rmu"), "--per_device_train_batch_size", "2"]) == 0
    found = shown(capsys.readouterr().out)
    assert found["lora_target_modules"] == "all-linear (default of rmu)"
    assert found["per_device_train_batch_size"] == "2"
    assert found["learning_rate"] == "0.001 (default)"


def test_validate_groups_the_keys_as_the_reference_does(place, capsys):
    assert main(["validate", recipe()]) == 0
    text = capsys.readouterr().out.partition("Model\n")[2]
    titles = [line for line in text.splitlines() if line and not line.startswith(" ")]
    reference = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text()
    headed = [line[3:].strip("`") for line in reference.splitlines() if line.startswith("## ")]
    assert ["Model", *titles] == headed[:-1]
    assert headed[-1] == "Defaults by method"


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("circuit_breakers", "circuit_breakers; weights (crossing): rejected 10, chosen 5, retain"),
        ("rmu", "rmu, vector of length 6.5; weights (constant): rejected 1, retain 1200"),
        ("repbend", "repbend; weights (constant): rejected 0.5, chosen 0.5, similarity 0.1, kl"),
    ],
)
def test_validate_reports_the_weights_of_a_preset(place, capsys, method, told):
    assert main(["validate", recipe(), "--method", method]) == 0
    assert told in " ".join(capsys.readouterr().out.split())
    assert main(["validate", recipe(), "--method", method, "--layer_scale", "shift"]) == 1
    assert "layer_scale: shift is the size of a shift" in capsys.readouterr().err


def test_validate_accepts_what_only_another_machine_can_run(place, capsys):
    keys = {"load_in_4bit": True, "bf16": True, "tf32": True, "model_name_or_path": "org/large"}
    assert main(["validate", recipe(**keys)]) == 0
    printed = capsys.readouterr().out
    assert "org/large (from the Hub), target layers 0.5-0.8" in printed
    assert "load_in_4bit: true: it needs a GPU" in printed
    assert "- fp16" not in printed
    assert main(["validate", recipe(fp16=True)]) == 0
    printed = capsys.readouterr().out
    assert "ok, as far as it could be checked" in printed
    assert "- fp16: true: it needs a GPU; without one it is not read" in printed


HUB_NAMES = {
    "model_name_or_path": "org/large",
    "dataset_name": "org/pairs",
    "teachers": {"positive": "org/teacher"},
    "evaluation": {"judge": ["length", "reward:org/judge"]},
}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Finding(None, "HF_HUB_OFFLINE is set"), "cannot be reached (HF_HUB_OFFLINE is set)"),
        (Finding(True), "the Hub has the name, and its "),
    ],
)
def test_validate_reports_what_it_did_not_check(place, monkeypatch, capsys, found, said):
    monkeypatch.setattr("rahf.recipe.model_files.ask_hub", lambda *_: found)
    path = recipe(**HUB_NAMES)
    assert main(["validate", path]) == 0
    text = capsys.readouterr().out
    lines = text.partition("Not checked\n")[2].partition("\n\n")[0].splitlines()
    assert text.startswith("ok, as far as it could be checked: recipe.yaml\n")
    keys = ["model_name_or_path", "dataset_name", "teachers.positive", "evaluation.judge"]
    assert [line[2:].partition(":")[0] for line in lines] == keys
    assert all(said in line for line in lines)
    assert main(["validate", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_checked"] == [line[2:] for line in lines]


def test_validate_refuses_what_the_hub_does_not_have(place, monkeypatch, capsys):
    answer = Finding(False, "the Hub has no such thing")
    monkeypatch.setattr("rahf.recipe.model_files.ask_hub", lambda *_: answer)
    lines = told(capsys, **HUB_NAMES)
    assert len(lines) == 4
    assert all(line.endswith(", and the Hub has no such thing") for line in lines)


def test_validate_shows_what_a_user_needs_before_all_values(place, capsys):
    keys = {"num_train_epochs": 2.0, "teachers": {"num_train_epochs": 1, "max_steps": 4}}
    assert main(["validate", recipe(**keys), "--alpha", "3", "--lora_r", "8"]) == 0
    first, unread, given, *values = capsys.readouterr().out.split("\n\n")
    assert first.startswith("ok: recipe.yaml\n")
    title, *lines = unread.splitlines()
    assert title == "Not read"
    assert lines[0].startswith("- num_train_epochs: 2 has no effect beside max_steps: 3")
    assert lines[1].startswith(
        "- teachers.num_train_epochs: 1 has no effect beside teachers.max_steps"
    )
    title, *lines = given.splitlines()
    assert title == "Given"
    assert "  alpha                       3 (default: 4.0)" in lines
    assert "  lora_r                      8 (as by default)" in lines
    assert len(lines) > 8
    assert len(values) > 8


def test_a_command_that_runs_a_recipe_notes_what_is_not_read(place, pipeline, capsys):
    assert main(["align", recipe(num_train_epochs=2)]) == 0
    assert capsys.readouterr().err.startswith("note: num_train_epochs: 2 has no effect beside max")


def test_validate_reports_problems_of_keys_and_of_files_at_once(place, capsys):
    lines = told(
        capsys,
        alhpa=1,
        alpha=0,
        target_layers=12,
        dataset_name="nowhere.jsonl",
        evaluation={"prompts": "none.jsonl"},
        teachers={"positive": "./none"},
    )
    assert [line.partition(":")[0] for line in lines] == [
        "alhpa",
        "alpha",
        "target_layers",
        "dataset_name",
        "teachers.positive",
        "evaluation.prompts",
    ]


@pytest.mark.parametrize(
    ("config", "layers", "said"),
    [
        ({"num_hidden_layers": 4}, 4, "the model has 4 blocks"),
        ({"n_layer": 5}, "3-9", "the model has 5 blocks"),
        ({"text_config": {"num_hidden_layers": 6}}, [2, 7], "the last one is 5"),
    ],
)
def test_target_layers_are_held_against_the_models_config(place, capsys, config, layers, said):
    save("model/config.json", config)
    [line] = told(capsys, target_layers=layers)
    assert line.startswith("target_layers: ")
    assert said in line


def test_a_model_without_a_known_depth_is_left_to_the_run(place):
    save("model/config.json", {"vocab_size": 8})
    assert main(["validate", recipe(target_layers=400)]) == 0


@pytest.mark.parametrize("modules", ["q_proj", r"model\.layers\.4\..*", ["query"]])
def test_modules_that_no_block_has_are_reported(place, capsys, modules):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    save("model/config.json", {"model_type": "llama", "num_hidden_layers": 4, **sizes})
    [line] = told(capsys, lora_target_modules=modules)
    assert line.startswith(f"lora_target_modules: {modules!r} names no matrix of a llama block")
    for right in (r"model\.layers\.[23]\..*_proj", ["q_proj"], "all-linear"):
        assert main(["validate", recipe(lora_target_modules=right)]) == 0


def test_modules_of_a_model_that_is_not_known_are_left_to_the_run(place):
    for config in ({"model_type": "mamba"}, {"model_type": "llama"}):
        save("model/config.json", config)
        assert main(["validate", recipe(lora_target_modules="q_proj")]) == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "model_name_or_path: ./nowhere does not exist"),
        ("a/b/c", "model_name_or_path: a/b/c does not exist"),
        ("pairs/model", "model_name_or_path: pairs/model does not exist"),
        ("pairs", "model_name_or_path: pairs holds no config.json"),
        ("adapter", "model_name_or_path: adapter is an adapter"),
        ("broken", "model_name_or_path: broken/config.json, line 1: not JSON"),
    ],
)
def test_a_folder_that_is_no_model_is_reported(place, capsys, name, said):
    save("adapter/adapter_config.json", {})
    save("broken/config.json", "{")
    [line] = told(capsys, model_name_or_path=name)
    assert line.startswith(said)


@pytest.mark.parametrize("name", ["org/pairs", "pairs-of-others", "org/pairs.v2"])
def test_a_name_that_may_be_on_the_hub_is_no_problem(place, name):
    assert main(["validate", recipe(dataset_name=name)]) == 0


def test_a_data_folder_needs_a_file_for_each_split(place, capsys):
    lines = told(capsys, dataset_train_split="learn", dataset_test_split="dev[:5]")
    assert lines == [
        "dataset_train_split: pairs has no split 'learn', it has: test, train",
        "dataset_test_split: pairs has no split 'dev', it has: test, train; null holds a share out",
    ]


def test_a_single_file_is_the_train_split(place, capsys):
    assert (
        main(["validate", recipe(dataset_name="pairs/train.jsonl", dataset_test_split=None)]) == 0
    )
    assert main(["validate", recipe(dataset_name="pairs/train.jsonl")]) == 0
    [line] = told(capsys, dataset_name="pairs/train.jsonl", dataset_test_split="dev")
    assert line.startswith("dataset_test_split: pairs/train.jsonl has no split 'dev'")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "a.jsonl has no rows"),
        ("a.jsonl", '{"chosen": "a", "rejected": "b"}\n{"chosen"\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"better": "a", "rejected": "b"}\n', "has no column chosen"),
        ("a.csv", "prompt,chosen\na,b\n", "has no column rejected"),
        ("a.json", "[3]", "a.json, item 0: a int"),
        ("a.jsonl", json.dumps({**PAIR, "chosen": 3}), "a.jsonl, line 1: chosen is int"),
        ("a.jsonl", json.dumps({**PAIR, "chosen": ""}), "none of the first 1 rows can be used"),
        ("a.txt", "a", "is not a data file"),
    ],
)
def test_the_first_rows_of_a_data_file_are_read(place, capsys, name, content, said):
    save(name, content)
    [line] = told(capsys, dataset_name=f"./{name}", dataset_test_split=None)
    assert line.startswith("dataset_name: ")
    assert said in line


def test_columns_are_looked_for_after_the_mapping(place, capsys):
    save_lines("a.jsonl", [{"prompt": "Hi", "good": "a", "bad": "b"}])
    keys = {"dataset_name": "a.jsonl", "dataset_test_split": None}
    assert main(["validate", recipe(**keys, columns={"chosen": "good", "rejected": "bad"})]) == 0
    [line] = told(capsys, **keys, columns={"chosen": "better", "rejected": "bad"})
    assert "chosen should come from 'better'" in line


@pytest.mark.parametrize("form", ["dict", "single"])
def test_a_folder_saved_by_datasets_is_known_by_its_columns(place, capsys, form):
    folder = "saved/train" if form == "dict" else "saved"
    if form == "dict":
        save("saved/dataset_dict.json", {"splits": ["train"]})
    save(f"{folder}/state.json", {})
    save(f"{folder}/dataset_info.json", {"features": {"prompt": {}, "chosen": {}}})
    [line] = told(capsys, dataset_name="saved", dataset_test_split=None)
    assert "has no column rejected" in line
    save(f"{folder}/dataset_info.json", {"features": {"chosen": {}, "rejected": {}}})
    assert main(["validate", recipe(dataset_name="saved", dataset_test_split=None)]) == 0


def test_each_part_of_a_mixture_is_looked_at(place, capsys):
    save_lines("a.jsonl", [{"better": "a"}])
    parts = [{"path": "pairs"}, {"path": "a.jsonl"}, {"path": "b.jsonl"}, {"path": "org/pairs"}]
    lines = told(capsys, dataset_name=None, datasets=parts)
    assert [line.partition(":")[0] for line in lines] == ["datasets[1].path", "datasets[2].path"]


def test_a_teacher_of_another_base_is_reported(place, capsys):
    save("teacher/adapter_config.json", {"base_model_name_or_path": "org/other"})
    [line] = told(capsys, teachers={"positive": "teacher"})
    assert line.startswith("teachers.positive: teacher was trained on org/other, not on model")


@pytest.mark.parametrize(
    "changing",
    [
        *({"init_lora_weights": name} for name in ("pissa_niter_4", "olora", "corda", "loftq")),
        {"layer_replication": [[0, 1], [0, 2]]},
    ],
)
def test_a_teacher_that_changes_the_base_is_reported(place, capsys, changing):
    save("teacher/adapter_config.json", {"init_lora_weights": True, **changing})
    [line] = told(capsys, teachers={"positive": "teacher"})
    assert line.startswith("teachers.positive: teacher changes the base's own weights")


@pytest.mark.parametrize("written", ["model", "./model", "absolute", "pairs/../model"])
def test_one_base_may_be_written_in_several_ways(place, written):
    base = str(place / "model") if written == "absolute" else written
    save("teacher/adapter_config.json", {"base_model_name_or_path": base})
    assert main(["validate", recipe(teachers={"positive": "teacher"})]) == 0


def test_a_teacher_is_an_adapter_or_a_model(place, capsys):
    [line] = told(capsys, teachers={"negative": "pairs"})
    assert line == "teachers.negative: pairs is neither an adapter nor a model's folder"
    assert main(["validate", recipe(teachers={"negative": "model"})]) == 0


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"method": "direction", "directions": "none"}, "directions: none does not exist"),
        ({"retain_weight": 1, "retain_dataset_name": "x.jsonl"}, "retain_dataset_name: x.jsonl"),
        ({"evaluation": {"unrelated_text": "x.jsonl"}}, "evaluation.unrelated_text: x.jsonl"),
        ({"deepspeed": "zero.json"}, "deepspeed: zero.json does not exist"),
        ({"chat_template": "none.jinja"}, "chat_template: 'none.jinja' is neither Jinja text"),
        ({"output_dir": "recipe.yaml/out"}, "output_dir: "),
    ],
)
def test_other_files_of_a_recipe_are_looked_for(place, capsys, keys, said):
    [line] = told(capsys, **keys)
    assert line.startswith(said)


def test_an_unreadable_line_of_an_evaluation_file_is_reported(place, capsys):
    save("prompts.jsonl", '{"prompt": "a"}\n{\n')
    [line] = told(capsys, evaluation={"prompts": "prompts.jsonl", "judge": None})
    assert line.startswith("evaluation.prompts: prompts.jsonl, line 2: not JSON")


def test_an_output_folder_that_cannot_be_written_is_reported(place, capsys, monkeypatch):
    Path("locked").mkdir()
    locked, access = Path("locked").absolute(), os.access
    # The permission is refused here, not in the file system, where root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and access(path, mode))
    [line] = told(capsys, output_dir="locked/out")
    assert line == f"output_dir: {locked} cannot be written to"


def test_a_missing_judge_is_reported(place, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", spec_without("vaderSentiment"))
    [line] = told(capsys, evaluation={"prompts": "prompts.jsonl"})
    assert 'pip install "rahf[judges]"' in line


def spec_without(missing):
    from importlib.util import find_spec

    return lambda name, *rest: None if name == missing else find_spec(name, *rest)


@pytest.fixture
def pipeline(monkeypatch):
    """Replace the pipeline by a function that keeps the arguments of its call."""
    module = types.ModuleType("rahf.pipeline.run")
    module.calls = []
    module.run_pipeline = lambda recipe, stage=None: module.calls.append((recipe, stage))
    monkeypatch.setitem(sys.modules, "rahf.pipeline.run", module)
    return module


def test_align_runs_the_recipe_with_its_overrides(place, pipeline):
    arguments = [
        "--alpha",
        "-3",
        "--dpo_weight",
        "0",
        "--bf16",
        "--stage",
        "positive",
        "--teachers.seed=5",
    ]
    assert main(["align", recipe(), *arguments]) == 0
    [(run, stage)] = pipeline.calls
    assert stage == "positive"
    assert run.method.alpha == -3
    assert run.training["bf16"] is True
    assert run.teachers_training == {"seed": 5}


def test_align_does_not_start_with_a_recipe_that_cannot_end(place, pipeline, capsys):
    assert main(["align", recipe(target_layers=99)]) == 2
    assert "error: recipe.yaml: 1 problem\n- target_layers: 99" in capsys.readouterr().err
    assert pipeline.calls == []


def test_data_prints_what_the_data_becomes(place, monkeypatch, capsys):
    module = types.ModuleType("rahf.pipeline.recipe_data")
    module.describe_data = lambda recipe: f"data of {recipe.data.dataset_name}"
    monkeypatch.setitem(sys.modules, "rahf.pipeline.recipe_data", module)
    assert main(["data", recipe()]) == 0
    assert capsys.readouterr().out == "data of pairs\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("row 3 is empty"), "error: row 3 is empty"),
        (
            OSError(13, "Permission denied", "out/x"),
            "error: Permission denied: out/x; give another place, or change the permissions",
        ),
        (OSError(5, "Input/output error", "out/x"), "error: Input/output error: out/x"),
        (
            OSError(28, "No space left on device", "out/x"),
            "error: out/x: no space left on the disk; free some and give the same command again",
        ),
    ],
)
def test_a_users_error_is_a_line_without_a_traceback(place, pipeline, capsys, error, said):
    def fail(recipe, stage=None):
        raise error

    pipeline.run_pipeline = fail
    assert main(["align", recipe()]) == 2
    printed = capsys.readouterr().err
    assert printed.splitlines() == [said]
    assert main(["align", recipe(), "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_environment_requests_the_traceback(place, pipeline, capsys, monkeypatch):
    monkeypatch.setenv("RAHF_DEBUG", "1")
    assert main(["align", recipe(alpha=0)]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_our_own_mistakes_are_not_hidden(place, pipeline, capsys):
    def fail(recipe, stage=None):
        raise TypeError("a bug")

    pipeline.run_pipeline = fail
    assert main(["align", recipe()]) == 2
    assert "TypeError: a bug; a mistake of rahf" in capsys.readouterr().err
    assert main(["align", recipe(), "--traceback"]) == 2
    assert 'raise TypeError("a bug")' in capsys.readouterr().err


def test_a_missing_recipe_is_a_line(place, capsys):
    for command in ("align", "data", "validate"):
        assert main([command, "none.yaml"]) == 2
        assert capsys.readouterr().err.startswith("error: no recipe at none.yaml")


def test_help_of_align_ends_with_the_keys_of_a_recipe(capsys):
    with pytest.raises(SystemExit) as end:
        main(["align", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "rahf align RECIPE.yaml [--stage NAME] [--accelerate_config NAME] [--KEY" in printed
    assert "alpha (default: 2.0)\n      Strength: the target is" in printed
    assert "teachers.label_smoothing (default: 0.2)" in printed


@pytest.mark.parametrize("arguments", [[], ["algin"], ["align"]])
def test_a_wrong_command_is_refused_with_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: rahf" in capsys.readouterr().err


ELSEWHERE = [
    ("generate", "--model_name_or_path", "--model"),
    ("generate", "--max-tokens", "--max_new_tokens"),
    ("generate", "--max_length", "--max_new_tokens"),
    ("generate", "--coeff", "--alpha"),
    ("features train", "--top_k", "--k"),
    ("features train", "--dict_size", "--latents"),
    ("features train", "--width", "--latents"),
    ("features train", "--layer", "--layers"),
    ("features steer", "--sae", "--dictionary"),
    ("features logits", "--latent", "--feature"),
    ("reward", "--dataset", "--pairs"),
    ("evaluate tasks", "--num_fewshot", "--few_shot"),
    ("export x", "--output_dir", "--output"),
]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("algin", "unknown command algin, did you mean align?"),
        *((word, f"command {word}, did you mean {to}?") for word, to in OTHER_COMMANDS.items()),
        ("xyzzy", "unknown command xyzzy, choose from quickstart, recipes"),
        ("evaluate preference", "unknown kind of evaluate preference, did you mean preferences?"),
        ("evaluate --model x", "choose from preferences, responses, tasks"),
        ("generate --promp x", "unknown argument --promp, did you mean --prompt?; the follow"),
        ("generate --model x", "one of the arguments --prompts --prompt is required"),
        ("generate --sed=3 --seed x", "unknown argument --sed=3, did you mean --seed?; argument"),
        ("evaluate tasks --task x", "unknown argument --task, did you mean --tasks?; the follow"),
        ("features", "which kind of features? choose from train, decompose, diff, steer"),
        ("generate outputs/warm --prompts p", "unexpected argument outputs/warm, did you mean --m"),
        ("export out extra --output o", "unexpected argument extra"),
        ("generate --sed 3 --temp 1", "--sed, did you mean --seed?; unknown argument --temp, did"),
        *(
            (f"{command} {name} 3", f"{name}, did you mean {to}?")
            for command, name, to in ELSEWHERE
        ),
        ("align --alpha=3", "the following arguments are required: RECIPE.yaml"),
    ],
)
def test_a_wrong_word_is_refused_with_what_was_meant(capsys, words, said):
    with pytest.raises(SystemExit):
        main(words.split())
    assert said in capsys.readouterr().err


def test_the_commands_hinted_at_exist():
    for told in OTHER_COMMANDS.values():
        assert told.split(",")[0].split()[0] in COMMANDS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--alpha"], "--alpha: the value is missing, a recipe key is --key value"),
        (["--alpha", "--lora_r", "4"], "--alpha: the value is missing"),
        (["--teachers.max_steps"], "--teachers.max_steps: the value is missing"),
        (["--output_dir"], "--output_dir: the value is missing"),
        (["--config", "recipe.yaml"], "config: is not a key of a recipe: remove it; the recipe is"),
        (["--accelerate_config", "ddp"], "accelerate_config: is not a key of a recipe: remove it"),
        (["--teachers.lr", "1"], "teachers.lr: is not a key of a recipe: use teachers.learning_ra"),
        (["--lr", "1"], "lr: is not a key of a recipe: use learning_rate"),
    ],
    ids=str,
)
def test_a_wrong_key_of_the_command_line_is_reported(place, capsys, words, said):
    assert main(["validate", recipe(), *words]) == 1
    [line] = capsys.readouterr().err.splitlines()[1:]
    assert line.startswith(f"- {said}")


def test_a_switch_needs_no_value(place):
    assert main(["validate", recipe(), "--bf16", "--trust_remote_code"]) == 0


@pytest.mark.parametrize(
    ("words", "command"), [pytest.param(*each, id=each[0]) for each in every_command()]
)
def test_every_command_has_a_help_with_an_example_that_parses(words, command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words.split(), "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "--traceback" in printed
    # A help names what the option holds, and its default as such.
    texts = re.findall(r"^  -\S.*?\s{2,}(\S.*)$", printed, re.MULTILINE)
    bare = re.compile(r"(of|that|as|for|default:)\b|.*\(\d+\)")
    assert [text for text in texts if bare.match(text)] == []
    call = f"rahf {words} {command.example}".strip()
    assert call in printed
    given = shlex.split(call)[1:]
    options, overrides = rahf.cli._parser(given).parse_known_args(given)
    keys = dict(zip(overrides[::2], overrides[1::2], strict=True))
    assert [key for key in keys if key.removeprefix("--") not in every_key()] == []
    assert overrides == [] or command.parser is not plain_command
    assert command.example or not [name for name in vars(options) if name in ("model", "recipe")]


def test_the_help_of_rahf_has_every_command_under_a_heading(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    places = [printed.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert max(map(len, printed.splitlines())) <= 100


def test_a_word_is_completed_by_the_shell(place):
    """Cases: what is typed, what is offered, what is not."""
    cases = [
        ("rahf al", {"align "}, {"data "}),
        ("rahf features d", {"decompose ", "diff "}, {"train "}),
        ("rahf generate --temp", {"--temperature "}, {"--top_k "}),
        ("rahf align my.yaml --teachers.lear", {"--teachers.learning_rate "}, set()),
        ("rahf nothing --", set(), {"--model "}),
    ]
    for line, offered, others in cases:
        answer = place / "answer"
        answer.touch()
        python(
            "from rahf.cli import main; main()",
            _ARGCOMPLETE="1",
            _ARGCOMPLETE_IFS="\n",
            _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
            COMP_LINE=line,
            COMP_POINT=str(len(line)),
        )
        found = {
            each if each.endswith(" ") else f"{each} " for each in answer.read_text().split("\n")
        }
        assert offered <= found, line
        assert not others & found, line
        answer.unlink()


def test_completion_prints_the_function_of_a_shell(capsys):
    for shell, word in (("bash", "complete "), ("zsh", "compdef"), ("fish", "complete --command")):
        assert main(["completion", shell]) == 0
        assert word in capsys.readouterr().out


def test_env_prints_versions_and_nothing_of_the_user(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    names = [line.split("  ")[0] for line in printed.splitlines()]
    assert names[:3] == ["rahf", "python", "torch"]
    assert {"transformers", "peft", "GPUs", "CPU cores", "memory", "platform"} <= set(names)
    assert "hf_secret" not in printed
    assert str(Path.home()) not in printed
    assert socket.gethostname() not in printed


def test_quiet_prints_results_and_errors_only(place, pipeline, capsys, monkeypatch):
    def run_pipeline(recipe, stage=None):
        list(tqdm(range(2), desc="a bar", mininterval=0))
        list(tqdm(range(2), desc="one that goes", mininterval=0, leave=False))
        print("warned of", file=sys.stderr)
        print("a result")

    pipeline.run_pipeline = run_pipeline
    assert main(["align", recipe(num_train_epochs=2)]) == 0
    assert "a bar" in capsys.readouterr().err
    for environment, option in ((None, ["--quiet"]), ("1", [])):
        if environment:
            monkeypatch.setenv("RAHF_QUIET", environment)
        assert main(["align", recipe(num_train_epochs=2), *option]) == 0
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == ("a result\n", "warned of\n")
    monkeypatch.delenv("RAHF_QUIET")
    assert not is_quiet()


def test_only_the_named_command_is_imported():
    code = (
        "import sys; from rahf.cli import main\n"
        "try: main(['export', '--help'])\n"
        "except SystemExit: print([n for n in sys.modules if n.startswith('rahf.commands.')])"
    )
    options = [
        f"rahf.commands.options{name}" for name in ("", ".numbers", ".other_names", ".parsers")
    ]
    loaded = [*options, "rahf.commands.table", "rahf.commands.export"]
    assert python(code).splitlines()[-1] == str(loaded)


def test_python_m_rahf_is_the_command(place):
    recipe()
    done = subprocess.run(
        [sys.executable, "-m", "rahf", "validate", "recipe.yaml"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok: recipe.yaml")


def test_the_script_for_accelerate_takes_the_recipe_as_config(place):
    script = Path(__file__).parents[2] / "scripts" / "align.py"
    done = subprocess.run(
        [sys.executable, script, "--config", recipe(), "--alhpa", "3"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "alhpa: unknown key, did you mean alpha?" in done.stderr


def a_plain_command():
    parser = argparse.ArgumentParser(prog="rahf")
    commands = parser.add_subparsers(parser_class=CommandParser)
    command = plain_command(commands, "walk", "walk", lambda options: options.seed)
    command.add_argument("--seed", type=int)
    return parser


def test_a_plain_command_refuses_an_unknown_option_with_the_nearest_one(capsys):
    options = a_plain_command().parse_args(["walk"], argparse.Namespace(overrides=["--sed=3"]))
    with pytest.raises(SystemExit):
        options.run(options)
    assert "unknown argument --sed=3, did you mean --seed?" in capsys.readouterr().err
    options = a_plain_command().parse_args(["walk", "--seed=3"], argparse.Namespace(overrides=[]))
    assert options.run(options) == 3
