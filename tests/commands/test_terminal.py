"""What commands print: closed pipes, narrow encodings, control characters, Ctrl-C."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from tqdm import tqdm

from rahf.cli import COMMANDS, Group, main
from rahf.report.escaping import markdown_code, markdown_text, one_line, printable
from rahf.report.terminal import ReaderGoneError, plain_output

RAHF = f"{sys.executable} -m rahf"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Make the current folder, with a recipe whose folder has a name that ASCII lacks."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/config.json").write_text('{"num_hidden_layers": 12}')
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    recipe = {"model_name_or_path": "model", "dataset_name": "pairs.jsonl", "max_steps": 3}
    recipe |= {"output_dir": "schön/\u202e출력", "dataset_test_split": None}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True))
    return tmp_path


def shell(line, **environment):
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_reader_that_leaves_early_is_no_error(place):
    done = shell(f"{RAHF} validate recipe.yaml | head -c 1; echo ${{PIPESTATUS[0]}}")
    assert done.stderr == b""
    assert done.stdout.split(b"\n")[0] in (b"o0", b"o141")


def test_a_closed_pipe_ends_with_141_and_no_word(place):
    # `true` reads nothing, and is gone before anything is written.
    done = shell(f"{{ sleep 2; {RAHF} validate recipe.yaml; echo $? >&2; }} | true")
    assert done.stderr == b"141\n"


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0"}])
def test_an_encoding_without_the_characters_prints_escapes(place, environment):
    done = shell(f"{RAHF} validate recipe.yaml", LC_ALL="C", PYTHONCOERCECLOCALE="0", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"sch\xf6n/\u202e\ucd9c\ub825" in done.stdout


ODD_NAME = "red\x1b[31m\u202e"


@pytest.mark.parametrize(
    ("key", "status"),
    [("output_dir", 0), ("dataset_name", 1), ("model_name_or_path", 1), ("deepspeed", 1)],
)
def test_control_characters_of_names_do_not_reach_the_terminal(place, capsys, key, status):
    recipe = yaml.safe_load(Path("recipe.yaml").read_text()) | {key: ODD_NAME}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["validate", "recipe.yaml"]) == status
    printed = capsys.readouterr()[status]
    assert "\x1b" not in printed
    assert r"red\x1b[31m\u202e" in printed


def test_a_progress_bar_moves_and_its_title_does_not(capsys):
    with plain_output():
        for nested in tqdm(range(2), desc="outer", mininterval=0):
            list(tqdm(range(nested), desc=ODD_NAME, mininterval=0))
    printed = capsys.readouterr().err
    assert "\r" in printed
    assert "\x1b[A" in printed
    assert r"red\x1b[31m\u202e" in printed
    assert "\x1b[31m" not in printed


def entries():
    found = []
    for name, entry in COMMANDS.items():
        for kind in entry.kinds if isinstance(entry, Group) else [()]:
            found += [[name, *([kind] if kind else [])]]
    return found


CONTINUED = {
    "quickstart": "checkpoint",
    "align": "checkpoint",
    "reward": "checkpoint",
    "dpo": "checkpoint",
    "compare": "checkpoint",
    "features explain": "where it stopped",
    "features score": "where it stopped",
    "features steer": "where it stopped",
    "features train": "checkpoint",
    "influence fit": "where it stopped",
    "influence validate": "where it stopped",
    "influence clean": "where it stopped",
    "sweep": "checkpoint",
    "generate": "where it stopped",
    "shift": "where it stopped",
    "evaluate responses": "except for what is kept in --verdicts",
}


@pytest.mark.parametrize("words", entries(), ids=" ".join)
def test_an_interrupted_command_reports_where_the_next_one_starts(words, capsys, monkeypatch):
    module = types.ModuleType("a command")
    module.add_options = lambda parser: parser.add_argument("rest", nargs="*")

    def run(*_):
        raise KeyboardInterrupt

    module.run = run
    recipe = types.SimpleNamespace(training={}, teachers_training={})
    monkeypatch.setattr("rahf.cli.import_module", lambda name: module)
    monkeypatch.setattr("rahf.recipe.files.checked_recipe", lambda *_: recipe)
    assert main([*words, "recipe.yaml"]) == 130
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("interrupted; the same command ")
    assert CONTINUED.get(" ".join(words), "starts from the beginning") in line


def test_a_pipe_inside_a_command_that_breaks_is_an_error(capsys, monkeypatch):
    module = types.ModuleType("rahf.export.formats")

    def export(options):
        raise BrokenPipeError(32, "Broken pipe")

    module.export = export
    monkeypatch.setitem(sys.modules, "rahf.export.formats", module)
    assert main(["export", "nothing", "--output", "out"]) == 2
    assert capsys.readouterr().err == "error: Broken pipe\n"
    assert issubclass(ReaderGoneError, BrokenPipeError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode, 漢字\n\tend", "plain, ünïcode, 漢字\n\tend"),
        ("\x1b[2J\x07\x00", r"\x1b[2J\x07\x00"),
        ("a\rb", r"a\rb"),
        ("\x9b31m", r"\x9b31m"),
        ("user\u202egpj.exe\u2066", r"user\u202egpj.exe\u2066"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text, shown):
    assert printable(text) == shown


def test_a_text_on_one_line_is_cut():
    assert one_line("a\n b\x1b\n" + "c" * 50, longest=10) == r"a b\x1b cc..."


@pytest.mark.parametrize(
    ("text", "shown", "code"),
    [
        ("<script>", r"\<script\>", "`<script>`"),
        ("[x](http://y)", r"\[x\](http://y)", "`[x](http://y)`"),
        ("a\n# b", r"a \# b", "`a # b`"),
        ("`x`", r"\`x\`", "`` `x` ``"),
        ("a|b", r"a\|b", "`a|b`"),
        (0.5, "0.5", "`0.5`"),
    ],
)
def test_markdown_of_data_does_nothing(text, shown, code):
    assert markdown_text(text) == shown
    assert markdown_code(text) == code
