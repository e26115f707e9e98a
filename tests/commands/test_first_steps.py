"""What a newcomer runs: shipped recipes, the demo, a look at the result without files."""

import io
import json
import sys
from pathlib import Path

import pytest
import yaml
from tiny_models import Family

from rahf.cli import main
from rahf.generation.answers import generate_one
from rahf.pipeline.quickstart import run_demo
from rahf.recipe.shipped import shipped_recipes
from rahf.report.columns import columns

DATA = ["data/tone/test.jsonl", "data/tone/train.jsonl", "data/unrelated.jsonl"]
DATA += ["recipe.schema.json"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def aligned(family: Family) -> str:
    return str(family.adapters["positive"])


def written(folder=Path("recipes")):
    """Return what is in a folder, locks omitted."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return sorted(path.relative_to(folder).as_posix() for path in files)


def test_every_recipe_is_listed_with_what_it_is(capsys):
    assert main(["recipes", "list"]) == 0
    printed = capsys.readouterr().out
    for name in shipped_recipes():
        assert f"{name}  " in printed
    assert "smollm2-135m/warm        RAHF-DUAL on SmolLM2-135M-Instruct: answers become" in printed


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_copied_recipe_has_all_the_files_that_it_names(place, capsys, name):
    assert main(["recipes", "copy", name]) == 0
    printed = capsys.readouterr().out
    assert f"wrote recipes/{name}.yaml\n" in printed
    assert printed.endswith(f"next: rahf validate recipes/{name}.yaml\n")
    named = [word.rstrip(",.") for word in Path(f"recipes/{name}.yaml").read_text().split()]
    data = [word for word in named if word.startswith("recipes/data/")]
    assert [word for word in data if not Path(word).exists()] == []
    assert main(["recipes", "copy", name]) == 0  # nothing is left to do
    assert "wrote" not in capsys.readouterr().out


def test_a_file_of_the_user_is_not_replaced_by_a_copy(place, capsys):
    own = place / "recipes/data/unrelated.jsonl"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    assert main(["recipes", "copy", "smollm2-135m/warm"]) == 2
    assert "recipes/data/unrelated.jsonl is there and differs" in capsys.readouterr().err
    assert written() == ["data/unrelated.jsonl"]
    own.unlink()
    own.symlink_to("nowhere")
    assert main(["recipes", "copy", "smollm2-135m/warm"]) == 2
    assert "recipes/data/unrelated.jsonl is there and differs" in capsys.readouterr().err
    assert own.is_symlink()
    assert main(["recipes", "copy", "smollm2-135m/wram"]) == 2
    assert "no recipe 'smollm2-135m/wram'; there are llama-3.1-8b/dual" in capsys.readouterr().err


def test_the_quickstart_makes_what_it_needs_in_an_empty_folder(place, monkeypatch, capsys):
    fetched, ran = [], []
    monkeypatch.setattr("rahf.models.demo_model.fetch_demo_model", fetched.append)
    monkeypatch.setattr("rahf.pipeline.quickstart.run_demo", lambda recipes: ran.append(recipes))
    assert main(["quickstart", "--model_only"]) == 0
    assert (len(fetched), ran, written()) == (1, [], [])
    assert main(["quickstart"]) == 0
    assert fetched[1] == Path("models/SmolLM2-135M-Instruct")
    assert ran == [{name: Path(f"recipes/smollm2-135m/{name}.yaml") for name in ("warm", "sour")}]
    assert written() == [*DATA, "smollm2-135m/sour.yaml", "smollm2-135m/warm.yaml"]
    warm = Path("recipes/smollm2-135m/warm.yaml")
    warm.write_text(warm.read_text() + "# mine")
    capsys.readouterr()
    assert main(["quickstart"]) == 0
    assert "warm.yaml differs from the shipped file and is used" in capsys.readouterr().err
    warm.write_text("method: none")
    Path("recipes/smollm2-135m/sour.yaml").unlink()
    fetched.clear()
    assert main(["quickstart"]) == 2
    assert "method: " in capsys.readouterr().err
    assert (fetched, written()) == ([], [*DATA, "smollm2-135m/warm.yaml"])


@pytest.mark.parametrize(
    ("module", "told"),
    [("vaderSentiment", "the judge of the demo is not installed"), ("gguf", "needs gguf")],
)
def test_the_quickstart_names_the_extra_that_is_missing(place, monkeypatch, capsys, module, told):
    def without(name, *rest):
        return None if name == module else sys.modules

    for user in ("rahf.commands.quickstart", "rahf.models.demo_model"):
        monkeypatch.setattr(f"{user}.find_spec", without)
    assert main(["quickstart"]) == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert "rahf[quickstart]" in printed


def test_the_demo_reports_both_policies(place, family, capsys):
    base = json.dumps(str(family.base))
    keys = {"max_steps": 1, "max_length": 48, "use_cpu": True, "disable_tqdm": True}
    recipes = {}
    for name in ("warm", "sour"):
        assert main(["recipes", "copy", f"smollm2-135m/{name}"]) == 0
        recipes[name] = Path(f"recipes/smollm2-135m/{name}.yaml")
        recipe = yaml.safe_load(recipes[name].read_text()) | keys
        recipe |= {"model_name_or_path": json.loads(base), "max_prompt_length": 24}
        recipe["target_layers"] = "1-2"
        recipe["evaluation"] |= {"max_new_tokens": 2, "unrelated_rows": 2}
        recipe.setdefault("teachers", {})["max_steps"] = 1
        recipes[name].write_text(yaml.safe_dump(recipe))
    report = run_demo(recipes)
    assert "| policy warm" in report
    assert "| policy sour" in report
    assert "| seen subject" in report
    assert report.endswith("results: outputs/smollm2-135m/warm, outputs/smollm2-135m/sour")


def test_prompts_of_the_command_line_are_answered_by_both_sides(aligned, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    given = ["--prompt", "w2 w3", "--prompt", "w5", "--max_new_tokens", "4"]
    assert main(["generate", "--model", aligned, *given]) == 0
    blocks = capsys.readouterr().out.split("> ")[1:]
    assert [block.splitlines()[0] for block in blocks] == ["w2 w3", "w5"]
    title, rule, *answers = blocks[0].splitlines()[2:]
    assert title.split() == ["base", "aligned"]
    assert len(rule.split()) == 2
    base, policy = answers[0][:28].strip(), answers[0][31:].strip()
    assert base
    assert policy
    assert base != policy


def test_a_model_without_an_adapter_has_one_answer(family, capsys):
    given = ["--prompt", "w2", "--max_new_tokens", "4"]
    assert main(["generate", "--model", str(family.base), *given]) == 0
    assert capsys.readouterr().out.startswith("> w2\n\nw")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--prompt", "w2", "--output", "o.jsonl"], "--output is for the prompts of a file"),
        (["--prompt", "w2", "--limit", "2"], "--limit is for the prompts of a file"),
        (["--prompts", "p.jsonl"], "--prompts needs --output FILE"),
        (["--prompt", "w2", "--alpha", "2"], "--alpha steers by --directions"),
        (["--prompt", "w2", "--steering", "ablate"], "--steering steers by --directions"),
        (["--prompt", "w2", "--steered_tokens", "all"], "--steered_tokens steers by --directions"),
        (["--prompt", "w2", "--steered_layers", "1"], "--steered_layers steers by --directions"),
        (["--prompt", "w2", "--directions", "none"], "--directions: there is no none (work"),
        (["--prompt", "w2\udcff"], r"'w2\udcff' is not UTF-8 text"),
    ],
)
def test_options_that_do_not_go_together_are_refused(aligned, capsys, given, told):
    assert main(["generate", "--model", aligned, *given]) == 2
    assert told in capsys.readouterr().err


def chat(monkeypatch, capsys, model, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", "--model", model, "--max_new_tokens", "3"]) == 0
    return capsys.readouterr().out


def test_a_chat_keeps_the_turns_of_each_side(aligned, capsys, monkeypatch):
    seen = []

    def recorded(model, tokenizer, prompt, *rest):
        seen.append(len(prompt))
        return generate_one(model, tokenizer, prompt, *rest)

    monkeypatch.setattr("rahf.generation.answers.generate_one", recorded)
    chat(monkeypatch, capsys, aligned, "w2 w3", "w4")
    assert len(seen) == 4
    assert seen[2] > seen[0]
    seen.clear()
    chat(monkeypatch, capsys, aligned, "w2 w3", "/reset", "w2 w3", "/exit", "w9")
    assert len(seen) == 4
    assert len(set(seen)) == 1


def test_the_base_of_a_chat_can_be_hidden(aligned, capsys, monkeypatch):
    both = chat(monkeypatch, capsys, aligned, "w2")
    printed = chat(monkeypatch, capsys, aligned, "", "/base", "w2", "/base", "w2", "/bas")
    hidden, shown = printed.split("shown: ")[1:]
    assert hidden.startswith("aligned; a new chat")
    assert "base   " not in hidden
    assert shown.startswith("base, aligned; a new chat")
    assert both.strip() in shown
    assert "/bas is not one of /base, /reset, /exit" in shown


def test_a_message_without_an_answer_does_not_end_the_chat(aligned, capsys, monkeypatch):
    lines = ["w2 " * 100, "w\udcff", "w3"]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", "--model", aligned, "--max_new_tokens", "3"]) == 2
    printed = capsys.readouterr()
    long, other = printed.err.strip().splitlines()[-2:]
    assert "64 positions. Write less, or give /reset for a new chat" in long
    assert "not UTF-8 text" in other
    assert "base" in printed.out


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (60, ["base                           aligned", "-" * 28 + "   " + "-" * 28]),
        (40, ["base:", "one"]),
    ],
)
def test_texts_are_beside_each_other_where_the_terminal_is_wide_enough(width, lines):
    shown = columns({"base": "one\ntwo \x1b", "aligned": "word " * 12}, width).splitlines()
    assert shown[:2] == lines
    assert max(map(len, shown)) <= width
    assert "\\x1b" in "".join(shown)
