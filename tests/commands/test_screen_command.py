"""`rahf screen` from files to files, and what it refuses."""

import json
import re
from pathlib import Path

import pytest
import torch
from tiny_models import D_MODEL, DEPTH
from transformers import AutoModelForCausalLM, AutoTokenizer

from rahf.cli import main
from rahf.data.response_ids import tokenize_responses
from rahf.directions.vectors import Directions
from rahf.guards.screen import load_bank

PAIRS = [
    {"prompt": f"w{n % 8 + 2} w{n % 5 + 9} ", "chosen": f"w{n % 7 + 20} w5", "rejected": "w6 w7 w8"}
    for n in range(20)
]
ANSWERS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
CHATS = [
    {"messages": [{"role": "user", "content": pair["prompt"]},
                  {"role": "assistant", "content": pair["chosen"]}]}
    for pair in PAIRS
]  # fmt: skip


def write_rows(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def base(family, tmp_path, monkeypatch):
    """Run in an empty folder with data, a bank, and one bank that does not fit."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("pairs", PAIRS), ("answers", ANSWERS), ("chats", CHATS)):
        write_rows(f"{name}.jsonl", rows)
    generator = torch.Generator().manual_seed(0)
    for name in ("one", "two"):
        drawn = torch.randn(DEPTH, D_MODEL, generator=generator)
        Directions(tuple(range(DEPTH)), drawn).save(Path("bank", name))
    write_rows("bank/one/pairs.jsonl", [{"chosen": "w20 w5", "rejected": "w6"}])
    Directions((2,), torch.ones(1, D_MODEL + 1)).save("wide")
    Path("empty").mkdir()
    return str(family.base)


def screen(base, data, *more, directions="bank", output="out"):
    given = ["screen", data, "--model", base, "--device", "cpu", "--output", output]
    given += ["--directions", directions] if directions else []
    return main([*given, "--max_response_tokens", "4", *more])


def states(model, prompt, response, layers):
    with torch.no_grad():
        hidden = model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states
    return torch.stack([hidden[layer + 1][0, len(prompt) :].mean(0) for layer in layers])


@pytest.mark.parametrize("side", ["right", "left"])
def test_effects_of_pairs_equal_a_loop_over_plain_transformers(base, capsys, side, monkeypatch):
    if side == "left":
        padded = AutoTokenizer.from_pretrained(base, padding_side="left")
        monkeypatch.setattr("rahf.models.adapters.load_tokenizer_of", lambda *_, **__: padded)
    assert screen(base, "pairs.jsonl", "--layers", "1-2", "--batch_size", "3") == 0
    assert "no sign" in capsys.readouterr().out
    records = [json.loads(line) for line in Path("out/rows.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == list(range(20))
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    bank = {name: Directions.load(f"bank/{name}").only((1, 2)) for name in ("one", "two")}
    for record in records[:6]:
        chats, both = [record["prompt"]] * 2, [record["towards"], record["from"]]
        first, second = (
            states(model, prompt, response[:4], (1, 2))
            for prompt, response in tokenize_responses(chats, both, tokenizer)
        )
        for name, each in bank.items():
            along = ((first - second) * each.vectors).sum(1) / each.vectors.square().sum(1)
            assert record["effects"][name] == pytest.approx(along.mean().item(), abs=2e-5)
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["kind"] == "preferences"
    assert summary["prompts"] == len({pair["prompt"] for pair in PAIRS})
    assert summary["directions"]["one"]["texts"]["classifier"]["mean"] > 0
    assert summary["directions"]["two"]["texts"] == {}
    mean = sum(record["effects"]["one"] for record in records) / 20
    assert summary["directions"]["one"]["mean"] == pytest.approx(mean, abs=1e-4)
    page = Path("out/index.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    for number in summary["directions"]["one"]["rows"]:
        assert f"row {number}, effect" in page


@pytest.mark.parametrize("data", ["answers.jsonl", "chats.jsonl"])
def test_responses_are_compared_with_the_models_own_answers(base, data):
    assert screen(base, data, "--rows", "8", "--seed", "3") == 0
    records = [json.loads(line) for line in Path("out/rows.jsonl").read_text().splitlines()]
    assert len(records) == 8
    assert main(["generate", "--model", base, "--device", "cpu", "--prompts", "pairs.jsonl",
                 "--max_new_tokens", "4", "--output", "own.jsonl"]) == 0  # fmt: skip
    own = [json.loads(line)["response"] for line in Path("own.jsonl").read_text().splitlines()]
    assert [record["from"] for record in records] == [own[record["row"]] for record in records]
    assert [record["towards"] for record in records] == [
        PAIRS[record["row"]]["chosen"] for record in records
    ]


@pytest.mark.parametrize("data", ["pairs.jsonl", "answers.jsonl"])
def test_a_dry_run_counts_and_writes_nothing(base, capsys, data):
    assert screen(base, data, "--dry_run", "--rows", "9", directions=None) == 0
    said = capsys.readouterr().out
    assert "9 of 20 rows would be read" in said
    assert "directions to fit from" in said
    assert ("own answers" in said) == (data == "answers.jsonl")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ("pairs.jsonl", {"directions": "empty"}, "empty holds no directions"),
        ("pairs.jsonl", {"directions": "wide", "more": ["--layers", "1-2"]}, "hold no layers"),
        ("pairs.jsonl", {"directions": "wide", "more": ["--layers", "2"]}, "17 dimensions"),
        ("pairs.jsonl", {"more": ["--layers", "9"]}, "target_layers"),
        ("nothing.jsonl", {}, "no file or folder nothing.jsonl"),
        ("blank.jsonl", {}, "blank.jsonl"),
        ("prompts.jsonl", {}, "no response"),
        ("one.jsonl", {}, "have 1 prompt"),
        ("parts.jsonl", {}, "completion[0] is 1, expected text or a list of {role, content}"),
        ("chat.jsonl", {}, "messages[0] is 'w2', expected text or a list of {role, content}"),
    ],
)
def test_what_cannot_be_screened_is_one_clear_line(base, capsys, data, options, said):
    Path("blank.jsonl").write_text("")
    write_rows("prompts.jsonl", [{"prompt": "w2"}])
    write_rows("one.jsonl", PAIRS[:1] * 3)
    write_rows("parts.jsonl", [{"prompt": "w2", "completion": [1]}])
    write_rows("chat.jsonl", [{"messages": ["w2"]}])
    options = dict(options)
    assert screen(base, data, *options.pop("more", ()), **options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not Path("out/summary.json").exists()


def record(**row):
    return json.dumps({"directions": {"one": row}})


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("one/pairs.jsonl", "", "pairs.jsonl is damaged"),
        ("one/pairs.jsonl", "[1]", "pairs.jsonl is damaged"),
        ("one/pairs.jsonl", '{"a": 1}', "pairs.jsonl is damaged"),
        ("one/pairs.jsonl", '{"chosen": null, "rejected": "w2"}', "pairs.jsonl is damaged"),
        ("bank.json", "[1]", "bank.json is damaged"),
        ("bank.json", '{"directions": {"one": "x"}}', "directions.one is 'x'"),
        ("bank.json", record(words="abc"), "directions.one is"),
        ("bank.json", record(words={"positive": [1, 2]}), "directions.one is"),
        ("bank.json", record(words={"positive": "w20"}), "directions.one is"),
        ("bank.json", '{"directions": {"gone": {}}}', "names 'gone'"),
        ("two/directions.safetensors", None, "two/directions.safetensors: there is no such file"),
    ],
)
def test_a_damaged_bank_is_named(base, file, content, said):
    path = Path("bank", file)
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(said)):
        load_bank(Path("bank"))
