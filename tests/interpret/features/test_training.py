"""Trainings of dictionaries: several in one pass, killed and resumed, and the command."""

import json
import random
import re
from dataclasses import replace
from time import perf_counter

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_streams import adapted, pieces_of
from tiny_models import EOS, tiny_model, tiny_tokenizer
from tiny_recipes import write_lines

from rahf.cli import main
from rahf.interpret.features.bases import fingerprint_of
from rahf.interpret.features.checkpoints import load_dictionary
from rahf.interpret.features.corpus import corpus_of_texts
from rahf.interpret.features.dictionary import Origin
from rahf.interpret.features.quality import fit_of
from rahf.interpret.features.streams import StateReader, schedule
from rahf.interpret.features.training import Name, Settings, train_coders
from rahf.interpret.features.untrained import untrained_like

SETTINGS = Settings((24, 40), 3, (0, 1), learning_rate=1e-2, batch_tokens=50)


def texts(count=60):
    words = random.Random(0)
    return [
        " ".join(f"w{words.randrange(2, 40)}" for _ in range(words.randint(4, 30)))
        for _ in range(count)
    ]


def reader_and_plan(layers=(1, 2), kind="states", tokens=1500, batch_size=7):
    model = tiny_model("llama") if kind == "states" else adapted()
    found = corpus_of_texts(texts(), tiny_tokenizer(), tokens=10_000, length=12)
    plan = schedule(found, torch.arange(found.pieces), tokens, seed=0, block_tokens=300)
    return StateReader(model, layers, "residual", kind, EOS, batch_size), plan


def weights_of(trained):
    return {name: torch.cat([w.flatten() for w in c.weights]) for name, c in trained.coders.items()}


class Killed(StateReader):
    """A reader whose process is killed in the fourth block."""

    read = 0

    def __call__(self, pieces, report=id):
        type(self).read += 1
        if type(self).read == 4:
            raise KeyboardInterrupt
        return super().__call__(pieces, report)


def test_a_training_that_was_killed_ends_with_the_same_weights(tmp_path):
    reader, plan = reader_and_plan()
    whole = train_coders(reader, plan, SETTINGS, tmp_path / "whole")
    assert len(plan.blocks) > 4
    assert [name.layer for name in whole.coders] == [1] * 4 + [2] * 4
    for every, left in ((0.0, 3), (1e9, 0)):
        Killed.read, path = 0, tmp_path / f"killed{every}"
        with pytest.raises(KeyboardInterrupt):
            train_coders(Killed(*reader), plan, SETTINGS, path, checkpoint_every=every)
        assert path.exists() == (left > 0)
        resumed = train_coders(reader, plan, SETTINGS, path)
        assert len(resumed.log) == len(whole.log) == len(plan.blocks)
        for (name, mine), theirs in zip(
            weights_of(resumed).items(), weights_of(whole).values(), strict=True
        ):
            assert torch.equal(mine, theirs), name
            assert torch.equal(resumed.coders[name].silent, whole.coders[name].silent)


class Massive(StateReader):
    """A reader of states of which every fortieth is massive."""

    def __call__(self, pieces, told=id):
        states = super().__call__(pieces, told)
        states[:, ::40] *= 1000
        return states


def test_massive_states_are_not_trained_on_unless_asked_for(tmp_path):
    reader, plan = reader_and_plan()
    found = {
        massive: train_coders(
            Massive(*reader), plan, replace(SETTINGS, massive=massive), tmp_path / str(massive)
        )
        for massive in (False, True)
    }
    scales = [next(iter(each.coders.values())).scale for each in found.values()]
    assert scales[1] > 10 * scales[0]
    states = reader([plan.corpus.piece(index) for index in range(20)])
    for massive, trained in found.items():
        coder = trained.coders[Name(1, 40, 0)]
        origin = Origin("tiny", None, 1, "residual", "states")
        explained = fit_of(coder.dictionary(origin), [states[0]]).explained
        assert (explained > 0.5) == (not massive)


def test_what_is_trained_beside_it_and_the_batch_size_change_nothing(tmp_path):
    together = train_coders(*reader_and_plan(), SETTINGS, tmp_path / "together")
    alone = replace(SETTINGS, latents=(40,), seeds=(1,))
    for batch_size in (7, 3):
        [(name, coder)] = train_coders(
            *reader_and_plan(layers=(2,), batch_size=batch_size),
            alone,
            tmp_path / f"alone{batch_size}",
        ).coders.items()
        assert name == Name(2, 40, 1)
        for mine, theirs in zip(coder.weights, together.coders[name].weights, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-3)


def test_differences_are_learned_and_explained(tmp_path):
    reader, plan = reader_and_plan(kind="differences", tokens=6000)
    signed = replace(SETTINGS, signed=True, latents=(40,), seeds=(0,))
    trained = train_coders(reader, plan, signed, tmp_path / "checkpoint")
    first, last = (line["unexplained"] for line in (trained.log[0], trained.log[-1]))
    for name in first:
        assert last[name] < 0.5 * first[name]
    states = reader(pieces_of(plan.corpus))
    for (name, coder), of_layer in zip(trained.coders.items(), states, strict=True):
        assert coder.scale == pytest.approx(
            ((of_layer - of_layer.mean(0)).norm(dim=1).mean() / 4).item(), rel=0.2
        ), name


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    reader, plan = reader_and_plan()
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) after .* Lower the learning rate"):
        train_coders(reader, plan, replace(SETTINGS, learning_rate=1e30), tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_a_checkpoint_that_cannot_be_resumed_is_refused(tmp_path):
    reader, plan = reader_and_plan(layers=(1,), tokens=400)
    settings, path = replace(SETTINGS, latents=(24,), seeds=(0,)), tmp_path / "checkpoint"
    train_coders(reader, plan, settings, path)
    tensors, intact = load_file(path), path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    name = "layer1_latents24_seed0/encoder"
    lacking = {key: part for key, part in tensors.items() if key != name}
    infinite = tensors | {name: tensors[name] / 0}
    for spoil, message in (
        (lambda: save_file(infinite, path, metadata), f"{name} holds values that are not finite"),
        (lambda: save_file(tensors, path), "is damaged or not a checkpoint"),
        (lambda: save_file(lacking, path, metadata), "is damaged or not a checkpoint"),
        (lambda: save_file(tensors, path, {"rahf": "[]"}), "is damaged or not a checkpoint"),
        (lambda: path.write_bytes(intact[:-4]), "is damaged or not a checkpoint"),
    ):
        spoil()
        with pytest.raises(ValueError, match=f"{message}.*Delete {path} to begin anew"):
            train_coders(reader, plan, settings, path)


def test_a_variance_explained_that_is_not_finite_is_not_finished(
    family, text, tmp_path, capsys, monkeypatch
):
    fit = fit_of
    monkeypatch.setattr(
        "rahf.interpret.features.runs.fit_of",
        lambda *given: fit(*given)._replace(explained=float("nan")),
    )
    options = ("--latents", 24, "--layers", 1, "--seeds", 0)
    assert command(family, text, tmp_path / "out", *options) == 2
    assert "seed0: the variance explained is nan" in capsys.readouterr().err.splitlines()[-1]
    assert not json.loads((tmp_path / "out" / "stage.json").read_text())["complete"]


@pytest.fixture
def text(tmp_path):
    write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in texts()])
    return tmp_path / "texts.jsonl"


def command(family, text, output, *options, model=None, source="--text"):
    given = ["--model", model or family.base, source, text, "--output", output]
    given += [
        "--tokens",
        3000,
        "--batch_tokens",
        40,
        "--held_out",
        100,
        "--length",
        12,
        "--k",
        3,
        "--device",
        "cpu",
    ]
    return main(["features", "train", *map(str, given), *map(str, options)])


def test_the_command_writes_dictionaries_and_what_they_are_worth(family, text, tmp_path, capsys):
    output = tmp_path / "out"
    options = ("--latents", 24, "--layers", "1-2", "--learning_rate", "1e-2")
    assert command(family, text, output, *options) == 0
    figures = json.loads((output / "quality.json").read_text())
    rows = figures["dictionaries"]
    assert [(row["layer"], row["latents"], row["seed"]) for row in rows] == [
        (1, 24, 0),
        (1, 24, 1),
        (2, 24, 0),
        (2, 24, 1),
    ]
    for row in rows:
        assert 0 < row["l0"] <= 3
        assert row["explained"] > 0.5
        assert row["agreement"]["cosine"] > row["agreement"]["chance"] + 0.1
        assert sum(row["density"]) == 24
    assert {"quality.md", "quality.png", "log.jsonl", "stage.json"} <= {
        path.name for path in output.iterdir()
    }
    printed = capsys.readouterr()
    assert "variance explained" in printed.out
    assert "so each is seen" in printed.err
    assert "75 steps of 40 tokens, too few" in printed.err
    found = load_dictionary(output / "layer2_latents24_seed1")
    assert found.origin.layer == 2
    assert found.origin.fingerprint is not None
    read = ["--model", family.base, "--dictionary", output / "layer2_latents24_seed1"]
    reading = ["features", "logits", *map(str, read), "--feature", "0", "--device", "cpu"]
    assert main(reading) == 0
    assert "seed1 was trained for 75 steps, too few to settle" in capsys.readouterr().err
    before = (output / "quality.json").stat().st_mtime_ns
    assert command(family, text, output, *options) == 0
    assert (output / "quality.json").stat().st_mtime_ns == before
    assert command(family, text, output, *options, "--signed") == 2
    assert "signed: False there, True now" in capsys.readouterr().err
    settings, weights = (
        output / "layer2_latents24_seed1" / f"dictionary.{kind}" for kind in ("json", "safetensors")
    )
    for path, content, message in (
        (settings, settings.read_bytes().replace(b'"k": 3', b'"k": 2'), "differs from what"),
        (weights, weights.read_bytes()[:-4], "differs from what"),
        (weights, None, "is missing"),
    ):
        intact = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        assert command(family, text, output, *options) == 2
        [line] = capsys.readouterr().err.strip().splitlines()[-1:]
        assert f"{path} {message}" in line
        assert f"Delete the folder {output}" in line
        path.write_bytes(intact)
    assert command(family, text, output, *options) == 0


def test_a_column_that_is_not_there_is_refused_before_a_model_is_loaded(
    family, text, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("rahf.models.adapters.load_model", lambda *given: 1 / 0)
    assert command(family, text, tmp_path / "out", "--column", "body") == 2
    told = [capsys.readouterr().err]
    given = ["--model", str(family.base), "--dictionary", "none", "--column", "body"]
    assert main(["features", "neurons", "--text", str(text), *given]) == 2
    for error in [*told, capsys.readouterr().err]:
        assert "no text in the column 'body'; it has: text." in error
        assert "--column" in error


def test_of_an_adapter_the_differences_are_trained(family, tmp_path, capsys):
    pairs = [
        {"prompt": "w2 w3", "chosen": chosen, "rejected": rejected}
        for chosen, rejected in zip(texts(40), reversed(texts(40)), strict=True)
    ]
    write_lines(tmp_path / "pairs.jsonl", pairs)
    adapter, output = family.adapters["positive"], tmp_path / "out"
    options = ("--kind", "differences", "--signed", "--latents", 24, "--seeds", 3, "--length", 40)
    given = {"model": adapter, "source": "--pairs"}
    assert command(family, tmp_path / "pairs.jsonl", output, *options, **given) == 0
    [row] = json.loads((output / "quality.json").read_text())["dictionaries"]
    assert row["agreement"] is None
    assert row["loss"]["whole"] == pytest.approx(0, abs=1e-5)
    origin = load_dictionary(output / "layer2_latents24_seed3").origin
    assert (origin.kind, origin.adapter, origin.seed) == ("differences", str(adapter), 3)
    assert "KL recovered" in capsys.readouterr().out


def test_the_null_is_trained_on_random_weights(family, text, tmp_path):
    options = ("--latents", 24, "--seeds", 0, "--layers", 1)
    for name, seed in (("trained", ()), ("null", ("--untrained_seed", 3))):
        assert command(family, text, tmp_path / name, *options, *seed) == 0
    origins = [
        load_dictionary(tmp_path / name / "layer1_latents24_seed0").origin
        for name in ("trained", "null")
    ]
    null = untrained_like(family.load_base(), 3)
    assert origins[1].fingerprint == fingerprint_of(null) != origins[0].fingerprint
    assert origins[1].base == f"{origins[0].base} with random weights of seed 3"
    assert command(family, text, tmp_path / "null", *options) == 2


def test_a_dry_run_reports_and_writes_nothing(family, text, tmp_path, capsys):
    start = perf_counter()
    tokens = ("--tokens", 2**31 - 1)  # millions of passes over this text
    for given in ((), tokens):
        options = ("--dry_run", "--latents", 24, 40, *given)
        assert command(family, text, tmp_path / "out", *options) == 0
        printed = capsys.readouterr().out
        assert "memory beside the model" in printed
        measured = re.search(r"figures on held-out text \| (\d+)%", printed)
        assert (int(measured[1]) == 0) == (given == tokens)
        assert not (tmp_path / "out").exists()
    assert perf_counter() - start < 30


def test_what_cannot_be_trained_is_one_line(family, text, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    write_lines(tmp_path / "one.jsonl", [{"text": "w2 w3 w4"}])
    for given, source, message in (
        (("--kind", "differences"), text, "needs an adapter"),
        (
            ("--model", family.adapters["positive"], "--untrained_seed", 0),
            text,
            "--untrained_seed needs a full model",
        ),
        (("--k", 30, "--latents", 24), text, "--k 30 is more than --latents 24"),
        (("--layers", 4), text, "reaches block 4, but the model has 4 blocks"),
        (("--length", 1), text, "leaves no room"),
        (("--column", "body"), text, "no text in the column 'body'"),
        ((), tmp_path / "empty.jsonl", "no token to read"),
        ((), tmp_path / "one.jsonl", "one document"),
        ((), tmp_path / "none.jsonl", "There is no file"),
    ):
        assert command(family, source, tmp_path / "out", *given) == 2
        [line] = capsys.readouterr().err.strip().splitlines()[-1:]
        assert message in line
        assert not (tmp_path / "out" / "quality.json").exists()
