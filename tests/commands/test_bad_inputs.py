"""Bad files, names and numbers: every command ends with one line that names the file."""

import errno
import io
import json
import os
import pickle
import shutil
import struct
import sys
import time
import types
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_models import D_MODEL

from rahf.cli import main
from rahf.directions.vectors import Directions

DEEP = 100_000
PICKLE = pickle.dumps({"weights": print})
NOT_WHOLE = struct.pack("<Q", 10**6) + b'{"a": '

BAD_JSON = {
    "cut": b'{"a": ',
    "a list": b"[1, 2]",
    "null": b"null",
    "latin1": '{"a": "é"}'.encode("latin1"),
    "zeros": b"\0" * 64,
    "empty": b"",
    "deep": b"[" * DEEP,
}
BAD_RECORDS = {
    "cut": b'{"prompt": "w2", "chos',
    "a number": b"3\n",
    "null": b"null\n",
    "latin1": '{"prompt": "é"}\n'.encode("latin1"),
    "zeros": b"\0" * 64,
    "empty": b"",
    "deep": b'{"prompt": ' + b"[" * DEEP + b"\n",
    "a number as prompt": b'{"prompt": 3, "chosen": 4, "rejected": 5, "response": 6}\n',
}
BAD_TENSORS = {
    "cut": NOT_WHOLE,
    "empty": b"",
    "pickle": PICKLE,
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "huge header": struct.pack("<Q", 2**62) + b"{}",
}
BAD_YAML = {
    "cut": b"model_name_or_path: {a: ",
    "a list": b"- a\n- b\n",
    "text": b"hello",
    "latin1": "output_dir: é".encode("latin1"),
    "zeros": b"\0" * 64,
    "empty": b"",
    "deep": b"[" * 600,
    "python": b"output_dir: !!python/object/apply:os.system ['true']",
    "a list as key": b"? [a, b]\n: 3\n",
}
BAD_TEMPLATES = {
    "no Jinja": "{% for message in",
    "raises": "{{ raise_exception('not this row') }}",
    "a loop without end": "{% for i in range(10**9) %}{{ messages[0].content }}{% endfor %}",
    "a missing name": "{{ messages[0].content.nothing.at_all }}",
    "no end": "{% for m in messages %}{{ m.content }}{% endfor %}{{ 1 // 0 }}",
}


def walks(**tables):
    return [
        pytest.param(kind, content, id=f"{kind}: {name}")
        for kind, table in tables.items()
        for name, content in table.items()
    ]


@pytest.fixture
def place(family, tmp_path, monkeypatch):
    """Make the current folder: a base, an adapter of it, pairs, prompts, responses, directions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    shutil.copytree(family.base, "base")
    shutil.copytree(family.adapters["positive"], "adapter")
    pair = {"prompt": "w2", "chosen": "w3", "rejected": "w4", "response": "w5"}
    Path("pairs.jsonl").write_text(json.dumps(pair) + "\n")
    Directions((1, 2), torch.ones(2, D_MODEL), {"model": "a/b"}).save("directions")
    return tmp_path


def one_line(capsys, arguments):
    """Return the line that a failing command ends with, the only one on stderr."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr().err
    assert status == 2, printed
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if not line.startswith("usage:")]
    [line] = [line for line in lines if line.startswith("error: ")]
    assert lines[-1] == line
    assert len(line) < 1500
    assert line.isprintable()
    return line


GENERATE = ("generate", "--prompts", "pairs.jsonl", "--output", "out.jsonl", "--device", "cpu")
GENERATE += ("--max_new_tokens", "1")
PREFERENCES = ("evaluate", "preferences", "--pairs", "pairs.jsonl", "--device", "cpu")
JUDGE = ("evaluate", "responses", "--responses", "pairs.jsonl", "--judge")

OF_FILE = {
    "base/config.json": (*GENERATE, "--model", "base"),
    "base/tokenizer.json": (*GENERATE, "--model", "base"),
    "base/model.safetensors": (*GENERATE, "--model", "base"),
    "adapter/adapter_config.json": (*PREFERENCES, "--model", "adapter"),
    "adapter/adapter_model.safetensors": (*PREFERENCES, "--model", "adapter"),
    "directions/directions.safetensors": ("export", "directions", "--output", "out"),
    "pairs.jsonl": (*JUDGE, "length"),
    "prompts.jsonl": (*GENERATE, "--prompts", "prompts.jsonl", "--model", "base"),
    "other.jsonl": (*PREFERENCES, "--pairs", "other.jsonl", "--model", "base"),
}
"""File -> a command that reads it."""


@pytest.mark.parametrize(
    ("file", "content"),
    walks(
        **{
            "base/config.json": BAD_JSON,
            "base/tokenizer.json": BAD_JSON,
            "adapter/adapter_config.json": BAD_JSON,
            "base/model.safetensors": BAD_TENSORS,
            "adapter/adapter_model.safetensors": BAD_TENSORS,
            "directions/directions.safetensors": BAD_TENSORS,
            "pairs.jsonl": BAD_RECORDS,
            "prompts.jsonl": BAD_RECORDS,
            "other.jsonl": BAD_RECORDS,
        }
    ),
)
def test_a_damaged_file_is_named_in_one_line(place, capsys, file, content):
    Path(file).write_bytes(content)
    line = one_line(capsys, OF_FILE[file])
    assert file in line or line.startswith(f"error: {Path(file).parts[0]}")  # or its folder


RECIPE = {"model_name_or_path": "base", "dataset_name": "pairs.jsonl", "output_dir": "out"}
RECIPE |= {"dataset_test_split": None}


@pytest.mark.parametrize(("_", "content"), walks(recipe=BAD_YAML))
@pytest.mark.parametrize("command", ["data", "plan"])
def test_a_damaged_recipe_is_named(place, capsys, command, _, content):
    Path("recipe.yaml").write_bytes(content)
    assert main([command, "recipe.yaml"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: recipe.yaml: ")
    assert "Traceback" not in printed


@pytest.mark.parametrize(("_", "content"), walks(config=BAD_YAML))
def test_a_damaged_launch_configuration_is_named(place, capsys, _, content):
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    Path("launch.yaml").write_bytes(content)
    arguments = ["plan", "recipe.yaml", "--accelerate_config", "launch.yaml"]
    assert "launch.yaml" in one_line(capsys, arguments)


@pytest.mark.parametrize(("_", "content"), walks(config=BAD_JSON))
def test_a_damaged_config_of_a_recipes_model_is_named(place, capsys, _, content):
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    Path("base/config.json").write_bytes(content)
    assert main(["plan", "recipe.yaml"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "base" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(("_", "template"), walks(template=BAD_TEMPLATES))
def test_a_template_that_fails_is_reported(place, capsys, _, template):
    Path("chat.jinja").write_text(template)
    line = one_line(capsys, (*GENERATE, "--model", "base", "--chat_template", "chat.jinja"))
    assert "template" in line or "chat.jinja" in line


def test_a_pickle_is_never_run(place, family, capsys):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, ("exploded",)

    for folder, name in (("base", "model"), ("adapter", "adapter_model")):
        Path(folder, f"{name}.safetensors").unlink()
        bin_name = "pytorch_model.bin" if folder == "base" else "adapter_model.bin"
        Path(folder, bin_name).write_bytes(pickle.dumps(Bomb(), 2))
    assert "adapter_model.bin" in one_line(
        capsys, (*PREFERENCES, "--model", "adapter", "--base", str(family.base))
    )
    assert "pytorch_model.bin" in one_line(capsys, (*GENERATE, "--model", "base"))
    Path("directions.bin").write_bytes(pickle.dumps(Bomb(), 2))
    assert "directions.bin" in one_line(capsys, ("export", "directions.bin", "--output", "out"))
    assert not Path("exploded").exists()


@pytest.mark.parametrize("folder", ["base", "adapter"])
def test_weights_of_another_shape_are_named(place, capsys, folder):
    [file] = Path(folder).glob("*.safetensors")
    weights = {name: value[..., :3].contiguous() for name, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    assert folder in one_line(capsys, (*GENERATE, "--model", folder))


WRONG_VALUES = {
    "num_hidden_layers": ("4", "expected int, got str"),
    "hidden_size": (None, "expected int, got null"),
    "vocab_size": (1.5, "1.5"),
    "rms_norm_eps": ("x", "float"),
    "tie_word_embeddings": ("no", "bool"),
    "attention_dropout": ("0.1", "expected one of (int, float, null)"),
    "head_dim": (0, "not a whole number from 1"),
    "num_attention_heads": ([2, "3"], "[2, '3']"),
    "num_key_value_heads": (2, "k_proj.weight: [8, 16] in the weights, [16, 16] by the conf"),
}


@pytest.mark.parametrize("key", WRONG_VALUES)
def test_a_wrong_value_in_a_models_config_is_named(place, capsys, key):
    value, said = WRONG_VALUES[key]
    config = json.loads(Path("base/config.json").read_text()) | {key: value}
    Path("base/config.json").write_text(json.dumps(config))
    line = one_line(capsys, (*GENERATE, "--model", "base"))
    assert said in line
    assert "base" in line
    if "weights" not in said:
        assert "base/config.json" in line
        assert key in line


NO_DEVICES = ["cuda:9", "cpu:x", "nonsense", "meta", "", "cuda:-1"]
NO_DEVICES += [] if torch.cuda.is_available() else ["cuda"]


@pytest.mark.parametrize("device", NO_DEVICES)
def test_a_device_that_is_not_there_is_reported(place, capsys, device):
    line = one_line(capsys, (*GENERATE, "--model", "base", "--device", device))
    assert "--device" in line


MISSING = [
    "none/at/all",
    "none",
    "base/none",
    "pairs.jsonl/none",
    "~nobody/none",
    "a\0b",
    "a\nb",
    "\x1b[31mred",
    "x" * 5000,
]


@pytest.mark.parametrize("name", MISSING)
def test_a_model_that_is_not_there_is_named(place, capsys, name):
    line = one_line(capsys, (*GENERATE, "--model", name))
    assert name.split("\n")[0].replace("\x1b", r"\x1b").replace("\0", r"\x00")[:100] in line


NOT_FOUND = {
    "none": (*GENERATE, "--model", "none"),
    "org/none": (*GENERATE, "--model", "adapter", "--base", "org/none"),
    "some/base": (*PREFERENCES, "--model", "adapter"),
    "org/other": (*PREFERENCES, "--model", "base", "--reference", "org/other"),
    "org/judge": (*JUDGE, "reward:org/judge"),
    "org/encoder": (*JUDGE, "references:right.jsonl", "--encoder", "org/encoder"),
    "org/chooser": (*JUDGE, "choice:org/chooser", "--aspects"),
    "org/pairs": (*PREFERENCES, "--pairs", "org/pairs", "--model", "base"),
    "org/data": ("data", "recipe.yaml", "--dataset_name", "org/data"),
    "org/mistyped": ("data", "recipe.yaml", "--model_name_or_path", "org/mistyped"),
    "org/planned": ("plan", "recipe.yaml", "--model_name_or_path", "org/planned"),
    "org/start": ("reward", "--pairs", "pairs.jsonl", "--output", "out", "--model", "org/start"),
}
"""A name that is not a path here -> a command that is given it."""


@pytest.fixture
def hub_names(place, monkeypatch):
    """Write a recipe, an adapter of a relative base and references; the Hub may be asked."""
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    right = {"prompt": "w2", "right": ["w3"], "wrong": ["w4"]}
    Path("right.jsonl").write_text(json.dumps(right) + "\n")
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    config["base_model_name_or_path"] = "some/base"
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(("name", "command"), NOT_FOUND.items(), ids=NOT_FOUND)
def test_an_unreachable_hub_is_reported_at_once(hub_names, monkeypatch, capsys, name, command):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    line = one_line(capsys, command)
    assert time.perf_counter() - start < 15  # each file of a name would be tried for 23 s
    assert name in line
    assert "refused" in line
    assert "the Hub cannot be reached" in line
    assert ("--base" in line) == (name in ("org/none", "some/base"))


@pytest.mark.parametrize(("name", "command"), NOT_FOUND.items(), ids=NOT_FOUND)
def test_a_name_that_the_hub_does_not_have_is_reported(
    hub_names, monkeypatch, capsys, name, command
):
    def repo_info(api, name, **_):
        response = types.SimpleNamespace(headers={}, request=None)
        raise RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    line = one_line(capsys, command)
    assert name in line
    assert "of this name that your token may read" in line


def test_what_was_fetched_earlier_is_used_without_a_network(hub_names, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "fetched")
    shutil.copytree("base", "fetched/models--org--kept/snapshots/0")
    refs = Path("fetched/models--org--kept/refs/main")
    refs.parent.mkdir()
    refs.write_text("0")
    start = time.perf_counter()
    assert main([*GENERATE, "--model", "org/kept"]) == 0
    assert time.perf_counter() - start < 15
    told = "note: org/kept is read from the cache, since the Hub cannot be reached"
    assert capsys.readouterr().err.count(told) == 1


def test_a_name_like_that_of_a_folder_is_hinted_at(place, capsys):
    for name in ("adaptr", "./adaptr", f"{place}/adaptr"):
        assert "adapter?)" in one_line(capsys, (*GENERATE, "--model", name))


@pytest.mark.parametrize("folder", ["empty", "pairs.jsonl", "directions"])
def test_a_folder_that_is_no_model_is_named(place, capsys, folder):
    Path("empty").mkdir()
    assert folder in one_line(capsys, (*GENERATE, "--model", folder))


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_reported_with_what_to_do(place, capsys, monkeypatch):
    from rahf import artifacts

    monkeypatch.setattr(artifacts, "write_text", lambda path, text: Full().write(text))
    line = one_line(capsys, (*JUDGE, "length", "--output", "out.json"))
    assert "no space left on the disk; free some and give the same command again" in line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TypeError("a bug"), "TypeError: a bug; a mistake of rahf or of a library, --traceback"),
        (KeyError("alpha"), "KeyError: 'alpha'; a mistake"),
        (RecursionError("too deep"), "nested too deeply"),
        (MemoryError(), "out of memory; lower the batch size"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "CUDA out of memory. Tried"),
        (ModuleNotFoundError("No module named 'vllm'"), "install what is missing"),
        (AssertionError(), "AssertionError"),
        (RuntimeError("a\nb\x1b[31m\u202ec"), r"a b\x1b[31m\u202ec"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "UTF-8"),
    ],
)
def test_every_other_error_is_one_line_too(place, capsys, monkeypatch, error, said):
    module = types.ModuleType("rahf.export.formats")

    def export(options):
        raise error

    module.export = export
    monkeypatch.setitem(sys.modules, "rahf.export.formats", module)
    assert said in one_line(capsys, ("export", "nothing", "--output", "out"))
    assert main(["export", "nothing", "--output", "out", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [("report", ""), ("screen", "", "--model", "base", "--output", "out"), ("export", "")],
    ids=str,
)
def test_an_empty_name_is_not_the_current_folder(place, capsys, command):
    with pytest.raises(SystemExit):
        main([*command])
    assert "is empty; give a name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("pairs.jsonl/page.html", "a folder is to be there: give another name"),
        ("x" * 300, "give a shorter name"),
    ],
)
def test_an_error_of_the_system_says_what_to_do(place, capsys, output, said):
    line = one_line(capsys, ("report", "adapter", "--output", output))
    assert said in line
    assert output in line or "pairs.jsonl" in line


def test_a_link_given_as_output_stays_and_its_file_is_written(place):
    Path("link.json").symlink_to("real.json")
    assert main([*JUDGE, "length", "--output", "link.json"]) == 0
    assert Path("link.json").is_symlink()
    assert "length" in Path("real.json").read_text()
