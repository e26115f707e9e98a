"""`rahf influence` on trainings of the tiny family, from the adapter's folder to the page."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from ranks import launched
from safetensors.torch import load_file
from tiny_recipes import write_lines

from rahf.artifacts import read_json, read_lines
from rahf.cli import main
from rahf.influence import retraining
from rahf.influence.files import SCORES_FILE
from rahf.influence.trained import Edit, read_training

BENCHMARK = Path(__file__).parents[2] / "scripts/benchmarks/influence.py"
HELD_OUT = [{"prompt": "w2 w3", "chosen": "w4 w5 <b>", "rejected": "w8 w9"}]


@pytest.fixture
def trained(recipe_file) -> Path:
    """A DUAL alignment with its teachers."""
    assert main(["align", str(recipe_file), "--stage", "positive"]) == 0
    assert main(["align", str(recipe_file), "--stage", "negative"]) == 0
    assert main(["align", str(recipe_file), "--stage", "alignment"]) == 0
    Path("held.jsonl").write_text(json.dumps(HELD_OUT[0]) + "\n")
    return Path("out")


def influence(*given) -> int:
    return main(["influence", *map(str, given)])


def test_an_alignment_is_attributed_to_its_pairs_directly_and_through_its_teachers(trained, capsys):
    assert influence("fit", "--adapter", trained) == 0
    told = capsys.readouterr().out
    assert [line.split(":")[0] for line in told.splitlines()] == ["policy", "positive", "negative"]
    given = ["--adapter", trained, "--pairs", "held.jsonl", "--output", "scored", "--explained", 1]
    assert influence("score", *given) == 0
    told = capsys.readouterr().out
    assert "through positive" in told
    assert "page: scored/index.html" in told
    scores = load_file(f"scored/{SCORES_FILE}")
    stages = [scores[f"{name}.changes"] for name in ("policy", "positive", "negative")]
    assert torch.allclose(scores["total"], sum(stages), atol=1e-7)
    assert all(stage.abs().max() > 0 for stage in stages)
    (record,) = read_lines(Path("scored/queries.jsonl"))
    assert [pair["change"] for pair in record["pairs"]] == sorted(scores["total"][:, 0].tolist())
    first = record["pairs"][0]
    (detail,) = first["details"]
    change = first["through"][detail["stage"]]
    assert sum(detail["sides"].values()) == pytest.approx(change, rel=1e-3)
    assert sum(detail["layers"]) == pytest.approx(change, rel=1e-3)
    for kind in ("update", "output"):
        tokens = sum(sum(row[kind]) for row in detail["rows"])
        assert tokens == pytest.approx(change, rel=1e-3)
    assert set(first["ranks"]) >= {"influence", "gradient dot", "BM25", "similarity", "margin"}
    page = Path("scored/index.html").read_text()
    assert "<b>" not in page.replace("</b>", "")
    summary = read_json(Path("scored/summary.json"))
    assert summary["unit"] == "nats"
    too_large = bool(scores["total"].abs().max() > 1)
    assert any("more than single pairs do" in note for note in summary["notes"]) == too_large


def test_what_cannot_be_attributed_is_refused_in_one_line(trained, family, capsys):
    cases = {
        "no adapter_config.json": "pairs",
        "holds no stage.json": family.adapters["positive"],
        "trained on other content": trained,
    }
    Path("pairs/train.jsonl").write_text(Path("pairs/train.jsonl").read_text().replace("w4", "w5"))
    for told, folder in cases.items():
        assert influence("fit", "--adapter", folder, "--factors", "f") == 2
        assert told in capsys.readouterr().err


def test_a_training_whose_files_have_changed_is_refused_by_name(trained, capsys):
    weights, recipe = trained / "adapter_model.safetensors", trained / "recipe.yaml"
    teacher = trained / "teachers/positive"
    own = yaml.safe_load(recipe.read_text())
    cases = [
        (weights, (teacher / weights.name).read_bytes(), "adapter_model.safetensors differs"),
        (recipe, yaml.safe_dump(own | {"alpha": 0.5}).encode(), "alpha: "),
        (recipe, yaml.safe_dump(own | {"target_layers": "1"}).encode(), "target_layers: "),
        (teacher / "stage.json", None, "positive holds no stage.json"),
    ]
    for path, content, told in cases:
        intact = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        assert influence("fit", "--adapter", trained, "--factors", "f") == 2, told
        assert told in capsys.readouterr().err
        path.write_bytes(intact)
    training = read_training(trained)
    retraining.retrain(training, Edit(frozenset({0})), Path("again"), 0)
    made = [path.stat().st_mtime_ns for path in sorted(Path("again").rglob(weights.name))]
    assert len(made) == 1 + len(training.recipe.method.facts.teachers)
    retraining.retrain(training, Edit(frozenset({0})), Path("again"), 0)
    assert made == [path.stat().st_mtime_ns for path in sorted(Path("again").rglob(weights.name))]


def test_a_given_teacher_is_named_and_neither_attributed_nor_retrained(trained, capsys):
    teacher = Path("given")
    (trained / "teachers/positive").rename(teacher)
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    recipe["teachers"] |= {"positive": "given"}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe | {"output_dir": "other"}))
    for stage in ("negative", "alignment"):
        assert main(["align", "recipe.yaml", "--stage", stage]) == 0
    assert influence("score", "--adapter", "other", "--pairs", "held.jsonl", "--output", "s") == 0
    assert "the teacher positive, given, was given" in capsys.readouterr().out
    assert set(read_json(Path("s/summary.json"))["pairs"]) == {"policy", "negative"}
    retraining.retrain(read_training("other"), Edit(frozenset({0})), Path("again"), 0)
    made = {str(path.parent) for path in Path("again").rglob("adapter_model.safetensors")}
    assert made == {"again", "again/teachers/negative"}


@pytest.fixture
def preferred(family, tmp_path, monkeypatch) -> Path:
    """A DPO adapter on pairs of two words, one of which the held-out pairs prefer as well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pairs = [
        {"prompt": f"w{n}", "chosen": f"w{n} w5 w{n + 1}", "rejected": f"w{n + 1} w6"}
        for n in range(8, 24)
    ]
    write_lines(tmp_path / "pairs.jsonl", pairs)
    write_lines(tmp_path / "held.jsonl", [pairs[n] | {"prompt": f"w{n + 25}"} for n in range(6)])
    recipe = {
        "model_name_or_path": str(family.base),
        "dataset_name": "pairs.jsonl",
        "dataset_test_split": None,
        "test_share": 0.0,
        "output_dir": "out",
        "max_steps": 8,
        "learning_rate": 0.01,
        "lora_r": 2,
        "use_cpu": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["dpo", "recipe.yaml", "--disable_tqdm"]) == 0
    return Path("out/dpo")


def test_scores_that_are_not_finite_are_refused_before_they_are_written(preferred, capsys):
    given = ["--adapter", preferred, "--pairs", "held.jsonl", "--output", "scored"]
    assert influence("score", *given, "--curvature", "kernel", "--damping", "1e-300") == 2
    assert "not finite with --curvature kernel and --damping 1e-300" in capsys.readouterr().err
    assert not list(Path("scored").glob("*"))


def test_the_benchmark_measures_an_adapter_of_dpo(preferred, monkeypatch, capsys):
    for options in ([], ["--bf16"]):
        given = ["--adapter", str(preferred), "--pairs", "4", *options]
        monkeypatch.setattr("sys.argv", ["influence.py", *given])
        runpy.run_path(str(BENCHMARK), run_name="__main__")
        told = capsys.readouterr().out
        assert re.findall(r"^ *(\w+).* \d+\.\d{3} CPU seconds a pair$", told, re.MULTILINE) == [
            *("fit", "score", "rivals", "of")
        ]


def test_what_cannot_be_retrained_is_refused_before_any_retraining(preferred, capsys):
    given = ["--adapter", preferred, "--pairs", "held.jsonl", "--output", "made"]
    cases = [
        ("clean", ["--share", 1], "--share 1.0 changes 16 pairs, and the training has 16"),
        ("clean", ["--arm", "best"], "--arm 'best' is not one of all pairs, drop worst"),
        ("clean", ["--arms", "drop worst, best"], "--arms 'best' is not one of all pairs"),
        ("validate", ["--without", 16], "--without 16 changes 16 pairs"),
        ("validate", ["--without", 0, "--flipped", 0.99], "--flipped 0.99 changes 16 pairs"),
    ]
    for command, options, told in cases:
        assert influence(command, *given, *options) == 2, told
        assert told in capsys.readouterr().err
        assert not Path("made").exists(), told


def test_a_retraining_is_reused_only_for_what_it_was_trained_for(preferred, monkeypatch):
    runs, real = [], retraining.train_dpo
    monkeypatch.setattr(retraining, "train_dpo", lambda *given: (runs.append(1), real(*given)))
    training, folder, some = read_training(preferred), Path("again"), Edit(frozenset({0}))
    other = training._replace(beta=0.7)
    cases = [
        (training, some, 0, 1),
        (training, some, 0, 0),
        (training, Edit(frozenset({0, 1})), 0, 1),
        (training, Edit(flipped=frozenset({0})), 0, 1),
        (training, Edit(flipped=frozenset({0})), 1, 1),
        (other, Edit(flipped=frozenset({0})), 1, 1),
        (other, Edit(flipped=frozenset({0})), 1, 0),
    ]
    for case, (its, edit, seed, trained) in enumerate(cases):
        runs.clear()
        stale = folder / "influence" / "key.json"
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.touch()
        (folder / "checkpoint-1").mkdir(exist_ok=True)
        retraining.retrain(its, edit, folder, seed)
        left = [stale.exists(), (folder / "checkpoint-1").exists()]
        assert (len(runs), left) == (trained, [not trained] * 2), case
    runs.clear()
    weights = preferred / "adapter_model.safetensors"
    weights.write_bytes((folder / "adapter_model.safetensors").read_bytes())
    retraining.retrain(other, cases[-1][1], folder, 1)
    assert len(runs) == 1, "another adapter"


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_give_the_scores_of_one(preferred):
    cases = []
    for curvature in ("ekfac", "kernel", "cg"):
        given = ["influence", "score", "--adapter", str(preferred), "--pairs", "held.jsonl"]
        given += ["--batch_size", "3", "--curvature", curvature]
        one, two = (["--factors", f"f{n}", "--output", f"{curvature}-{n}"] for n in (1, 2))
        assert main(given + one) == 0
        cases.append(given + two)
    Path("cases.json").write_text(json.dumps(cases))
    launched("ddp_cpu.yaml", "tests/distributed/run_cases.py", "cases.json")
    for curvature in ("ekfac", "kernel", "cg"):
        one, two = (load_file(f"{curvature}-{n}/{SCORES_FILE}") for n in (1, 2))
        assert one.keys() == two.keys()
        for name, values in one.items():
            size = values.abs().max()
            assert (two[name] - values).abs().max() <= 1e-3 * size, (curvature, name)


@pytest.mark.slow
def test_dpo_is_validated_by_retraining_and_cleaned(preferred, capsys):
    given = ["--adapter", preferred, "--pairs", "held.jsonl"]
    few = ["--halves", 3, "--without", 2, "--flipped", 0.25]
    assert influence("validate", *given, *few, "--output", "validated") == 0
    found = read_json(Path("validated/validation.json"))
    assert found["steps"]["correlation"] > 0.99
    assert found["steps"]["slope"] == pytest.approx(1, abs=0.05)
    assert set(found["datamodelling"]) >= {"influence", "BM25", "random", "gradient dot"}
    assert set(found["leave_out"]) == {"supporters", "opponents", "random"}
    assert found["flips"]["flipped"] == 4
    assert {"influence", "margin"} <= set(found["flips"]["auc"])
    capsys.readouterr()
    arm = ["--write", "cleaned.jsonl", "--arm", "flip worst", "--seeds", 1, "--share", 0.25]
    arm += ["--arms", "drop worst,drop random"]
    assert influence("clean", *given, *arm, "--output", "cleaned") == 0
    assert "flip worst: 16 pairs in cleaned.jsonl" in capsys.readouterr().out
    arms = read_json(Path("cleaned/cleaning.json"))["arms"]
    counts = {name: len(each["rows"]) for name, each in arms.items()}
    assert counts.pop("all pairs") == 0
    assert set(counts) == {"drop worst", "drop random", "flip worst"}
    assert set(counts.values()) == {4}
    before, after = read_lines(Path("pairs.jsonl")), read_lines(Path("cleaned.jsonl"))
    turned = {
        n for n, pair in enumerate(after) if pair["chosen"][0]["content"] != before[n]["chosen"]
    }
    assert turned == set(arms["flip worst"]["rows"])
    assert influence("clean", *given, *arm, "--output", "cleaned") == 2
    assert "cleaned.jsonl already exists" in capsys.readouterr().err
