"""The story of a user as one test: from pairs to an adapter in plain transformers, by commands."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_recipes import WORDS, write_lines
from transformers import AutoModelForCausalLM

from rahf.artifacts import read_json, read_lines
from rahf.cli import main
from rahf.directions.vectors import Directions


def run(*words):
    assert main([str(word) for word in words]) == 0, words


@pytest.mark.slow
def test_the_story_from_pairs_to_plain_transformers(compared, family, capsys):
    given = yaml.safe_load(compared.read_text())
    given["compare"] |= {"rows": {"base": {}, "sft": {}, "dual": {}}, "trials": {}, "seeds": [0]}
    compared.write_text(yaml.safe_dump(given))
    recipe, policy = str(compared), "out"
    texts = [{"text": " ".join(WORDS[n % 30 : n % 30 + 7])} for n in range(40)]
    write_lines(Path("corpus.jsonl"), texts)
    run("validate", recipe)
    run("data", recipe)
    run("align", recipe)
    metrics = read_json(Path("out/metrics.json"))
    assert set(metrics["models"]) >= {"base", "policy"}
    assert "RAHF-DUAL" in Path("out/README.md").read_text()

    run("compare", recipe)
    table = Path("out/compare/comparison.md").read_text()
    assert all(f"| {row} " in table for row in ("base", "sft", "dual"))

    run("directions", recipe, "--rows", 4)
    directions = Directions.load("out/reading/responses")
    assert directions.vectors.shape[1] == family.load_base().config.hidden_size
    run("export", "out/reading/responses", "--output", "vectors", "--formats", "gguf")
    run("directions", recipe, "--from", "vectors/control_vector.gguf")
    back = Directions.load("out/reading/control_vector")
    assert torch.equal(back.vectors, directions.only(back.layers).vectors)

    model = ("--model", family.base, "--text", "corpus.jsonl", "--length", 8, "--device", "cpu")
    small = ("--layers", "2", "--latents", 32, "--k", 4, "--tokens", 400, "--held_out", 40)
    run("features", "train", *model, *small, "--seeds", 0, "--output", "trained")
    dictionary = ("--dictionary", "trained/layer2_latents32_seed0")
    moved = ("--pairs", "pairs", "--device", "cpu", "--output", "moved", "--top", 3)
    run("features", "diff", "--model", policy, *dictionary, *moved)
    listed = ("--moved", "moved/features.json", "--random", 2, "--output", "explained")
    run("features", "explain", *model, *dictionary, *listed)
    assert read_lines(Path("explained/explanations.jsonl"))

    Path("held.jsonl").write_text(json.dumps(read_lines(Path("pairs/test.jsonl"))[0]) + "\n")
    run("influence", "fit", "--adapter", policy)
    run("influence", "score", "--adapter", policy, "--pairs", "held.jsonl", "--output", "scored")
    assert Path("scored/index.html").stat().st_size > 1000

    run("report", "out", "out/compare", "moved", "scored", "--output", "page.html")
    page = Path("page.html").read_text()
    assert "<script" not in page
    assert all(
        part in page
        for part in ("besides the asked trait", "Features that moved", "Pairs that caused")
    )

    run("export", policy, "--output", "shipped")
    merged = AutoModelForCausalLM.from_pretrained("shipped/merged").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        moved = merged(input_ids=ids).logits - family.load_base()(input_ids=ids).logits
    assert moved.abs().max() > 1e-3
    assert "answers" in capsys.readouterr().out
