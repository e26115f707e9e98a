"""A bank is fitted from a model's own answers, once, and what is wrong with its file is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tiny_recipes import WORDS
from transformers import AutoModelForCausalLM, AutoTokenizer

from rahf.cli import main
from rahf.data.prompts import chat_prompt_form
from rahf.data.response_ids import tokenize_responses
from rahf.directions.bank import own_bank, read_bank
from rahf.directions.vectors import Directions
from rahf.generation.answers import generate
from rahf.guards.screen import BANK_BEGUN, load_bank

BANK = {
    "prompts": [f"{WORDS[n]} {WORDS[n + 1]}" for n in range(8)],
    "directions": {
        "asked": {"instructions": {"positive": "w30 w31", "negative": "w32"}, "words": {}},
        "given": {"files": {"positive": "up.jsonl", "negative": "down.jsonl"}},
    },
}


@pytest.fixture
def bank_file(recipe_file):
    """Write a bank of instructions and of files beside the recipe."""
    for name, word in (("up", "w20 w21"), ("down", "w22")):
        rows = [{"prompt": prompt, "response": f"{word} {prompt}"} for prompt in BANK["prompts"]]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("bank.yaml").write_text(yaml.safe_dump(BANK))
    return recipe_file


def mean_difference(base, pairs, layers, most):
    """Return the mean over pairs of the difference of mean states, one answer at a time."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    tokenizer, found = AutoTokenizer.from_pretrained(base), []
    for pair in pairs:
        chats = [[{"role": "user", "content": pair["prompt"]}]] * 2
        both = tokenize_responses(chats, [pair["chosen"], pair["rejected"]], tokenizer)
        means = []
        for prompt, response in both:
            ids = torch.tensor([prompt + response[:most]])
            with torch.no_grad():
                hidden = model(ids, output_hidden_states=True).hidden_states
            means.append(torch.stack([hidden[n + 1][0, len(prompt) :].mean(0) for n in layers]))
        found.append(means[0] - means[1])
    return torch.stack(found)


def test_a_bank_is_fitted_in_one_command_and_not_a_second_time(bank_file, family, capsys):
    command = ["directions", str(bank_file), "--bank", "bank.yaml", "--layers", "0-2"]
    command += ["--max_response_tokens", "4"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "asked" in table
    assert "given" in table
    bank = Path("out/reading/bank")
    lines = (bank / "asked/pairs.jsonl").read_text().splitlines()
    pairs = list(map(json.loads, lines))
    assert [pair["prompt"] for pair in pairs] == BANK["prompts"]
    form = chat_prompt_form(AutoTokenizer.from_pretrained(family.base))
    model = AutoModelForCausalLM.from_pretrained(family.base).eval()
    ids = [
        form.encode([{"role": "user", "content": f"w30 w31\n\n{prompt}"}])
        for prompt in BANK["prompts"]
    ]
    tokenizer = AutoTokenizer.from_pretrained(family.base)
    assert [pair["chosen"] for pair in pairs] == generate(model, tokenizer, ids, max_new_tokens=4)
    evidence = json.loads((bank / "given/evidence.json").read_text())
    held_out = evidence["made_with"]["held_out_pairs"]
    pairs = list(map(json.loads, (bank / "given/pairs.jsonl").read_text().splitlines()))
    differences = mean_difference(family.base, pairs, (0, 1, 2), 4)
    total = differences.sum(0)
    directions = Directions.load(bank / "given")
    count = len(pairs) - held_out
    left = total - count * directions.vectors  # the sum over the pairs that are held out
    assert held_out == 1
    assert min((left - each).abs().max() for each in differences) < 1e-3
    before = (bank / "given/directions.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert capsys.readouterr().out == table
    assert (bank / "given/directions.safetensors").stat().st_mtime_ns == before
    assert main([*command[:-1], "3"]) == 2
    assert "fitted otherwise" in capsys.readouterr().err
    # Single directions beside a bank would hide it, and a killed fit leaves a part of one.
    single = bank / "directions.safetensors"
    shutil.copy(bank / "given/directions.safetensors", single)
    assert main(command) == 2
    assert "single directions beside it" in capsys.readouterr().err
    (bank / "bank.json").rename(bank / BANK_BEGUN)
    assert main(command) == 2
    assert "holds single directions" in capsys.readouterr().err
    single.unlink()
    with pytest.raises(ValueError, match="its fit has not ended"):
        load_bank(bank)
    assert main([*command[:-1], "3"]) == 2
    assert "holds a part of another bank" in capsys.readouterr().err
    assert main(command) == 0
    assert capsys.readouterr().out == table
    assert load_bank(bank).directions.keys() == {"asked", "given"}


def test_the_bank_that_comes_with_the_package_is_read_and_names_what_the_docs_name():
    entries = {entry.name: entry for entry in read_bank(own_bank())}
    assert {"length", "refusal", "sycophancy", "formality", "tone"} <= entries.keys()
    assert all(len(set(entry.prompts)) >= 20 for entry in entries.values())


def of(**entry):
    return {"prompts": BANK["prompts"], "directions": {"one": entry}}


TWO = {"positive": "a", "negative": "b"}
SECOND_FAILS = of(files={"positive": "up.jsonl", "negative": "down.jsonl"})
SECOND_FAILS["directions"]["two"] = {"files": {"positive": "up.jsonl", "negative": "up2.jsonl"}}


@pytest.mark.parametrize(
    ("bank", "said"),
    [
        ({}, "the file is empty"),
        ({"directions": {}}, "at least one direction"),
        ({"direction": {}}, "unknown key direction"),
        (of(), "needs either `instructions` or `files`"),
        (of(instructions=TWO, files=TWO), "needs either `instructions` or `files`"),
        (of(instructions={"positive": "a"}), "two different texts"),
        (of(instructions={"positive": "a", "negative": "a "}), "two different texts"),
        (of(instructions=TWO, prompts=["w2"]), "at least 5 prompts"),
        (of(instructions=TWO, words={"positive": "sorry"}), "lists of words"),
        (of(instructions=TWO, weight=1), "keys of about, files"),
        ({**of(), "directions": {"a/b": {"instructions": TWO}}}, "name should be that of a folder"),
        (of(files={"positive": "up.jsonl", "negative": "other.jsonl"}), "share no prompt"),
        (of(files={"positive": "up.jsonl", "negative": "up2.jsonl"}), "up2.jsonl hold too few"),
        (
            of(files={"positive": "up.jsonl", "negative": "none.jsonl"}),
            "bank.yaml: directions.one.files.negative: there is no file none.jsonl",
        ),
        (of(instructions={**TWO, "positive": "w2 " * 100}), "Lower max_response_tokens"),
        (SECOND_FAILS, "two: only 0 of 8 prompts"),
    ],
)
def test_a_bank_that_cannot_be_fitted_is_one_clear_line(bank_file, capsys, bank, said):
    Path("other.jsonl").write_text('{"prompt": "w39", "response": "w2"}\n')
    Path("up2.jsonl").write_text(Path("up.jsonl").read_text())
    Path("bank.yaml").write_text(yaml.safe_dump(bank) if bank else "")
    assert main(["directions", str(bank_file), "--bank", "bank.yaml"]) == 2
    assert said in capsys.readouterr().err
    assert list(Path("out").rglob("directions.safetensors")) == []


def test_options_that_a_bank_does_not_read_are_refused(bank_file, capsys):
    assert main(["directions", str(bank_file), "--bank", "--rows", "3"]) == 2
    assert "--bank does not read --rows" in capsys.readouterr().err
