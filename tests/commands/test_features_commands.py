"""`rahf features ...` that read a dictionary: what they write, and what they refuse."""

import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from planted_dictionaries import random_dictionary
from tiny_models import D_MODEL, tiny_model, tiny_tokenizer
from tiny_recipes import WORDS, write_lines

from rahf.artifacts import read_json, read_lines
from rahf.cli import main
from rahf.commands.options.prediction import _trained_on
from rahf.data.response_ids import tokenize_responses
from rahf.directions.vectors import Directions
from rahf.interpret.features.checkpoints import save_dictionary
from rahf.interpret.features.responses import digest_of
from rahf.interpret.features.untrained import untrained_like
from rahf.models.adapters import load_tokenizer_of
from rahf.records.makers import makers


def texts(count, start=0):
    return [" ".join(WORDS[(start + n + step) % 38] for step in range(6)) for n in range(count)]


@pytest.fixture
def folder(tmp_path, family, monkeypatch):
    """Make a dictionary of the family, one of another model, texts, prompts and pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    base = family.load_base()
    save_dictionary(random_dictionary(base), Path("dictionary"))
    save_dictionary(random_dictionary(base, latents=64, seed=1), Path("larger"))
    save_dictionary(random_dictionary(tiny_model(seed=1)), Path("foreign"))
    other = replace(random_dictionary(), weights=random_dictionary(tiny_model()).weights)
    narrow = type(other.weights)(*(part[..., :12] for part in other.weights))
    narrow = narrow._replace(encoder_bias=other.weights.encoder_bias)
    save_dictionary(replace(other, weights=narrow), Path("narrow"))
    save_dictionary(random_dictionary(base, layer=3), Path("upper"))
    tiny_model(seed=5).save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    save_dictionary(random_dictionary(tiny_model(seed=5)), Path("of_model"))
    pairs = [
        {"prompt": text, "chosen": chosen, "rejected": rejected}
        for text, chosen, rejected in zip(texts(12), texts(12, 9), texts(12, 20), strict=True)
    ]
    write_lines(Path("pairs/test.jsonl"), pairs)
    write_lines(Path("prompts.jsonl"), pairs[:3])
    labels = [{"text": text, "label": n % 2} for n, text in enumerate(texts(60))]
    for record in labels[1::2]:
        record["text"] = "w30 w31 w30 w31 w30 " + record["text"]
    write_lines(Path("texts.jsonl"), labels)
    write_lines(Path("empty.jsonl"), [])
    Directions((1, 2), torch.randn(2, D_MODEL)).save("directions")
    return tmp_path


def features(*arguments):
    return main(["features", *map(str, arguments)])


def figures(*arguments):
    output = Path(f"{arguments[0]}.json")
    assert features(*arguments, "--device", "cpu", "--output", output) == 0
    assert [*makers(output)] == [f"rahf features {arguments[0]}"]
    return read_json(output)


def test_a_direction_is_decomposed_beside_random_vectors(folder, family, capsys):
    options = ("decompose", "directions", "--dictionary", "dictionary", "--terms", 4)
    found = figures(*options, "--model", family.base)
    assert len(found["terms"]) == len(found["random"]["high"]) == 4
    assert len(found["terms"][0]["raises"]) == 6
    out = capsys.readouterr().out
    assert "| term | feature" in out
    assert "random vector" in out
    direction = Directions.load("directions")
    planted = direction.vectors.clone()
    planted[0] = 3 * random_dictionary(family.load_base()).directions[5]
    Directions((1, 2), planted).save("planted")
    found = figures(*options[:1], "planted", *options[2:])
    assert found["terms"][0]["feature"] == 5
    assert found["terms"][0]["coefficient"] == pytest.approx(3, abs=1e-4)
    assert found["terms_above_random"] == 4


def test_the_diff_is_compared_with_placebo_seeds_and_rivals(folder, family, capsys):
    options = ("diff", "--model", family.adapters["positive"], "--dictionary", "dictionary")
    extra = ("--seed_of_adapter", family.adapters["contrast"], "--device", "cpu")
    extra += ("--placebo", family.adapters["negative"], "--output", "diff", "--top", 7)
    assert features(*options, "--pairs", "pairs", *extra) == 0
    found = read_json(Path("diff/features.json"))
    assert found["prompts"] == 12
    assert [*makers(Path("diff"))] == ["rahf features diff"]
    assert list(found["moved"]) == ["default", "seed_1", "placebo_1"]
    assert len(found["features"]) == 7
    assert list(found["explained"])[:2] == ["dictionary", "mean difference"]
    assert found["placebo_band"] > 0
    assert Path("diff/features.png").stat().st_size > 5000
    sizes = found["size_quantiles"]["placebo_1"]
    assert sizes == sorted(sizes)
    assert sizes[95] == pytest.approx(found["placebo_band"])
    assert {"rivals", "seen_by", "raises", "tracks"} <= found["features"][0].keys()
    out = capsys.readouterr().out
    assert out.strip() == Path("diff/features.md").read_text().strip()
    assert "Token KL" in out
    assert "WARNING: no placebo" not in out
    assert features(*options, "--pairs", "pairs", "--device", "cpu") == 0
    assert "WARNING: there is no placebo to compare with" in capsys.readouterr().out


def test_the_diff_reads_responses_and_reports_what_it_cuts(folder, family, capsys):
    records = [{"prompt": text, "response": text} for text in texts(4)]
    write_lines(Path("responses.jsonl"), records)
    options = ("diff", "--model", family.adapters["positive"], "--dictionary", "dictionary")
    extra = ("--responses", "responses.jsonl", "--device", "cpu", "--output", "diff")
    assert features(*options, *extra) == 0
    whole = read_json(Path("diff/features.json"))["tokens"]
    assert features(*options, *extra, "--max_length", 10) == 0
    assert read_json(Path("diff/features.json"))["tokens"] < whole
    assert "4 of 4 responses lose their end (--max_length 10)" in capsys.readouterr().err
    assert features(*options, *extra, "--limit", 3) == 0
    assert "the first 3 of 4 prompts are read" in capsys.readouterr().err
    save_dictionary(
        random_dictionary(family.load_base(), kind="differences", adapter="another"),
        Path("differences"),
    )
    options = (*options[:-1], "differences")
    assert features(*options, *extra) == 0
    assert "is of the differences that another makes" in capsys.readouterr().err
    assert read_json(Path("diff/features.json"))["fit"] == {"base": None, "aligned": None}


def settings_of(folder):
    """Return settings that an adapter was trained with."""
    if (folder / "recipe.yaml").exists():
        return yaml.safe_load((folder / "recipe.yaml").read_text())
    return read_json(folder / "metrics.json")["settings"]


@pytest.mark.parametrize("trained", ["align", "dpo"])
def test_a_placebo_is_trained_with_the_adapters_own_recipe(trained, recipe_file, family, capsys):
    save_dictionary(random_dictionary(family.load_base()), Path("dictionary"))
    assert main([trained, str(recipe_file)]) == 0
    model = {"align": "out", "dpo": "out/dpo"}[trained]
    options = ("diff", "--model", model, "--dictionary", "dictionary", "--pairs", "pairs")
    for _ in range(2):  # the second time the placebo is there
        assert features(*options, "--placebo", "train", "--output", "diff", "--device", "cpu") == 0
    shuffled = read_lines(Path("diff/placebo/pairs/train.jsonl"))
    rows = read_lines(Path("pairs/train.jsonl"))
    assert len(shuffled) == len(rows)
    swapped = []
    for row, other in zip(rows, shuffled, strict=True):
        sides = [other["chosen"][0]["content"], other["rejected"][0]["content"]]
        assert sorted(sides) == sorted([row["chosen"], row["rejected"]])
        swapped.append(sides[0] == row["rejected"])
    assert 0 < sum(swapped) < len(rows)
    made, given = (settings_of(folder) for folder in (Path("diff/placebo/adapter"), Path(model)))
    same = ("alpha", "target_layers", "max_steps", "lora_r", "beta")
    assert {key: made.get(key) for key in same} == {key: given.get(key) for key in same}
    teacher = Path("diff/placebo/adapter/teachers/positive")
    assert teacher.is_dir() == (trained == "align")
    assert read_json(Path("diff/features.json"))["placebo_band"] is not None
    capsys.readouterr()
    check_prompts_of_training(model, rows, capsys)
    bare = ("--model", family.adapters["positive"], *options[3:])
    assert features("diff", *bare, "--placebo", "train", "--output", "other") == 2
    assert "holds no recipe.yaml" in capsys.readouterr().err


def check_prompts_of_training(model, rows, capsys):
    """The prompts that a training has read are known from its record, as long as it is there."""
    options, tokenizer = Namespace(chat_template=None), load_tokenizer_of(model)
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    ids = tokenize_responses(prompts, ["."] * len(rows), tokenizer)
    wanted = {digest_of(prompt) for prompt, _ in ids}
    assert _trained_on(model, options, tokenizer) == wanted
    assert "note:" not in capsys.readouterr().err
    changed = [rows[0] | {"prompt": "w9"}, *rows[1:]]
    write_lines(Path("pairs/train.jsonl"), changed)
    assert _trained_on(model, options, tokenizer) is None
    assert "are not known, and not left out" in capsys.readouterr().err
    write_lines(Path("pairs/train.jsonl"), rows)


def test_a_feature_is_steered_and_a_factor_of_one_changes_no_response(folder, family, capsys):
    model = ("--model", family.base, "--prompts", "prompts.jsonl", "--max_new_tokens", 5)
    generate = ["generate", *map(str, model), "--output", "plain.jsonl", "--device", "cpu"]
    assert main(generate) == 0
    steer = ("steer", *model, "--dictionary", "dictionary", "--device", "cpu")
    steered = {}
    for name, how in {
        "one": ("--how", "scale", "--strength", 1),
        "pin": ("--how", "pin", "--strength", 50),
        "kl": ("--how", "pin", "--kl", 0.2, "--neutral", "texts.jsonl"),
        "none": ("--how", "ablate", "--feature", 4),
    }.items():
        assert features(*steer, "--feature", 3, *how, "--output", f"{name}.jsonl") == 0
        steered[name] = [line["response"] for line in read_lines(Path(f"{name}.jsonl"))]
    plain = [line["response"] for line in read_lines(Path("plain.jsonl"))]
    assert steered["one"] == plain
    assert steered["pin"] != plain
    assert "feature 3 pin 50" in capsys.readouterr().out


def test_a_probe_reads_labelled_texts_beside_the_untrained_model(folder, family, capsys):
    write_lines(
        Path("other.jsonl"),
        [
            {"prompt": "w4" if n == 5 else text, "target": "yes" if n % 3 else "no"}
            for n, text in enumerate(texts(70))
        ],
    )
    options = ("probe", "--model", family.base, "--dictionary", "dictionary")
    [found] = figures(*options, "--texts", "texts.jsonl")["sets"]
    assert (found["train"], found["test"], found["positive"]) == (42, 18, "1")
    assert list(found["probes"]) == [
        *("features", "dimensions", "hidden states"),
        *("untrained dimensions", "untrained hidden states"),
    ]
    assert found["probes"]["hidden states"]["auc"]["mean"] > 0.9
    assert len(found["probes"]["features"]["8"]["features"]) == 8
    null = untrained_like(family.load_base(), 3)
    save_dictionary(random_dictionary(null), Path("null"))
    seeded = (*options, "--texts", "texts.jsonl", "--untrained_seed", 3)
    [beside] = figures(*seeded, "--untrained_dictionary", "null")["sets"]
    assert list(beside["probes"])[3] == "untrained features"
    assert len(beside["probes"]["untrained features"]["8"]["features"]) == 8
    assert beside["probes"]["features"] == found["probes"]["features"]
    columns = ("--text_column", "prompt", "--label_column", "target")
    figures(*options, "--texts", "other.jsonl", *columns, "--limit", 60)
    told = capsys.readouterr()
    assert "labelled yes" in told.out
    assert "the first 60 texts of other.jsonl are read (--limit)" in told.err
    assert "1 of 60 texts of other.jsonl have no token that is read" in told.err


def test_what_moved_is_explained_shown_and_predicts_unseen_prompts(folder, family, capsys):
    diff = ("diff", "--model", family.adapters["positive"], "--dictionary", "dictionary")
    diff += ("--pairs", "pairs", "--device", "cpu", "--output")
    assert features(*diff, "diff") == 0
    model = ("--model", family.base, "--dictionary", "dictionary", "--text", "texts.jsonl")
    explain = ("explain", *model, "--moved", "diff/features.json", "--window", 8, "--random", 2)
    assert features(*explain, "--output", "out", "--device", "cpu") == 0
    lines = read_lines(Path("out/explanations.jsonl"))
    listed = [row["feature"] for row in read_json(Path("diff/features.json"))["features"]]
    assert [line["number"] for line in lines] == [*listed, 0, 1]
    assert features("score", "out", "--device", "cpu") == 0
    capsys.readouterr()
    assert features(*diff, "again", "--explanations", "out/scores.jsonl") == 0
    rows = read_json(Path("again/features.json"))["features"]
    explained = {line["number"]: line["explanation"] for line in lines[:-2]}
    assert [row["explanation"] for row in rows] == [explained[row["feature"]] for row in rows]
    assert "| explanation" in capsys.readouterr().out
    made = random_dictionary(family.load_base(), kind="differences", adapter="another")
    save_dictionary(made, Path("differences"))
    of_change = ("--dictionary", "differences", "--text", "texts.jsonl", "--window", 8)
    of_change += ("--output", "changes", "--device", "cpu", "--random", 1, "--model")
    assert features("explain", *of_change, family.base) == 2
    assert "is a full model: give the adapter" in capsys.readouterr().err
    assert features("explain", *of_change, family.adapters["positive"]) == 0
    assert len(read_lines(Path("changes/explanations.jsonl"))) == 33
    said = ("w2 w3", " ".join(WORDS))
    pairs = [
        {"prompt": text, "chosen": said[n % 2], "rejected": "w4 w5"}
        for n, text in enumerate(texts(20, 12))
    ]
    write_lines(Path("unseen/test.jsonl"), pairs)
    predict = ("score", "out", "--predict", "diff/features.json", "--pairs", "unseen")
    found = figures(*predict)
    assert found["prompts"] == 20
    first = found["features"][0]
    assert first["differs"]["asked"] == first["changes"]["asked"] == 20
    assert first["explanation"] != first["shuffled"]
    told = capsys.readouterr()
    assert "AUC over 20 prompts" in told.out
    assert "trained on are not known" in told.err  # the adapter has no record of its training
    assert found["unseen"] == {"given": 20, "read_by_diff": 0, "trained_on": None}
    read = read_lines(Path("pairs/test.jsonl"))
    write_lines(Path("mixed/test.jsonl"), [*read, *pairs])
    mixed = figures(*predict[:5], "mixed")
    some = len({row["prompt"] for row in read})
    assert f"{some} of {20 + some} prompts are not new: {some} were read" in capsys.readouterr().err
    assert mixed["unseen"]["read_by_diff"] == some
    assert mixed["features"] == found["features"]
    assert features(*predict[:5], "pairs", "--device", "cpu") == 2
    assert "give other prompts" in capsys.readouterr().err
    whole = figures(*predict, "--predict_from", "response")
    assert whole["features"] != found["features"]
    assert features(*diff[:3], "--dictionary", "larger", *diff[5:], "larger_diff") == 0
    assert features(*predict[:3], "larger_diff/features.json", *predict[4:]) == 2
    assert "is of the dictionary larger" in capsys.readouterr().err


def test_directions_of_a_recipe_are_shown_with_their_explanations(recipe_file, capsys):
    write_lines(Path("corpus.jsonl"), [{"text": text} for text in texts(60)])
    fit = ["directions", str(recipe_file), "--layers", "1,2", "--compare", "none"]
    assert main(fit) == 0
    model = yaml.safe_load(recipe_file.read_text())["model_name_or_path"]
    explain = ("explain", "--model", model, "--text", "corpus.jsonl", "--window", 8, "--output")
    options = ("out/explained", "--directions", "out/reading/responses", "--device", "cpu")
    assert features(*explain, *options) == 0
    capsys.readouterr()
    assert main([*fit, "--explanations", "out/explained/explanations.jsonl"]) == 0
    told = capsys.readouterr()
    assert told.out.count("(not scored)") + told.out.count("unexplained") == 2
    assert "explains other directions" not in told.err
    assert main([*fit[:-3], "2", *fit[-2:], "--explanations", model]) == 2
    assert "There is no file" in capsys.readouterr().err


def test_features_are_compared_with_neurons_and_other_models(folder, family, capsys):
    model = ("--model", family.base, "--dictionary", "dictionary", "--text", "texts.jsonl")
    found = figures("neurons", *model, "--units", 8)
    assert list(found["units"]) == ["features", "neurons", "untrained neurons"]
    assert found["count"] == 8
    other = ("--other_model", "model", "--other_dictionary", "of_model")
    found = figures("universality", *model, *other)
    assert list(found["correlations"]) == [
        *("features", "features, tokens shuffled", "dimensions"),
    ]
    itself = ("--other_model", family.base, "--other_dictionary", "dictionary")
    same = figures("universality", *model, *itself)
    assert same["correlations"]["features"]["q25"] == pytest.approx(1, abs=1e-3)
    assert all(row["feature"] == row["other"] for row in same["features"])
    assert found["correlations"]["features"]["median"] < 0.99
    found = figures("splitting", "--dictionary", "dictionary", "--larger", "larger")
    assert sum(found["shares"][name] for name in ("lost", "kept", "split")) == pytest.approx(1)
    found = figures("logits", *model[:4], "--feature", 3, "--feature", 0)
    assert [row["feature"] for row in found["features"]] == [3, 0]
    capsys.readouterr()


def test_what_does_not_go_together_is_one_clear_line(folder, family, capsys):
    base, adapter = family.base, family.adapters["positive"]
    diff = ("diff", "--pairs", "pairs", "--model", adapter)
    steer = ("steer", "--model", base, "--prompts", "prompts.jsonl", "--output", "r.jsonl")
    steer += ("--dictionary", "dictionary", "--feature", 3, "--how")
    probe = ("probe", "--model", base, "--dictionary", "dictionary", "--texts")
    write_lines(Path("three.jsonl"), [{"text": "w4 w5", "label": n} for n in range(3)])
    write_lines(Path("objects.jsonl"), [{"text": "w4 w5", "label": {"a": n}} for n in range(2)])
    text = ("--text", "texts.jsonl")
    made = random_dictionary(family.load_base(), kind="differences", adapter="another")
    save_dictionary(made, Path("changes"))
    of_changes = ("--model", base, "--dictionary", "changes")
    other = ("--other_model", base, "--other_dictionary")
    logits = ("logits", *of_changes, "--feature", 3, "--device", "cpu")
    assert features(*logits) == 0  # reads directions only
    refused = "changes is a dictionary of differences"
    shutil.copytree(adapter, "copy")
    of_copy = (*diff, "--dictionary", "dictionary")
    cases = {
        (*of_copy, "--placebo", "copy"): f"--placebo copy is the same adapter as --model {adapter}",
        (*of_copy, "--seed_of_adapter", adapter): "is the same adapter as --model",
        (*of_copy, *("--placebo", family.adapters["negative"]) * 2): "as --placebo",
        (*of_copy, "--output", "moved", *("--placebo", "train") * 2): "as --placebo train",
        ("probe", *of_changes, "--texts", "texts.jsonl"): refused,
        (*probe, "texts.jsonl", "--untrained_dictionary", "changes"): refused,
        ("neurons", *of_changes, *text): refused,
        ("universality", *of_changes, *other, "dictionary", *text): refused,
        ("universality", *of_changes[:3], "dictionary", *other, "changes", *text): refused,
        (*steer[:-4], "changes", *steer[-3:], "ablate"): refused,
        (*diff, "--dictionary", "foreign"): "with the fingerprint",
        (*diff, "--dictionary", "narrow"): "reads hidden states of 12 dimensions",
        (*diff, "--dictionary", "nowhere"): "nowhere holds no dictionary",
        (*diff[:3], "--model", base, "--dictionary", "dictionary"): "is not an adapter",
        ("diff", "--responses", "empty.jsonl", "--model", adapter, "--dictionary", "dictionary"): (
            "holds no responses"
        ),
        (*diff, "--dictionary", "dictionary", "--limit", 1): "responses to 1 prompts",
        (*diff, "--dictionary", "dictionary", "--placebo", "train"): "give --output",
        ("decompose", "directions", "--dictionary", "upper"): "is of layer 3, but directions holds",
        ("decompose", "directions", "--dictionary", "narrow"): "those of the dictionary have 12",
        (*steer, "pin"): "--how pin needs --strength",
        (*steer, "ablate", "--strength", 2): "has no strength",
        (*steer, "pin", "--kl", 1): "give both or neither",
        (*steer[:-2], 32, "--how", "ablate"): "features 0 to 31",
        (*probe, "three.jsonl"): "has 3 labels (0, 1, 2)",
        (*probe, "prompts.jsonl"): "needs a text in the column 'text'",
        (*probe, "objects.jsonl"): "a list or an object; give text, a number, true or false",
        (*probe, "texts.jsonl", "--untrained_dictionary", "upper"): "reads layer 3 (residual)",
        (*probe, "texts.jsonl", "--untrained_seed", 3, "--untrained_dictionary", "dictionary"): (
            "with the fingerprint"
        ),
        ("splitting", "--dictionary", "larger", "--larger", "dictionary"): "exchange them",
        (
            "splitting",
            "--dictionary",
            "dictionary",
            "--larger",
            "upper",
        ): "of one layer",
        ("neurons", "--model", adapter, "--dictionary", "dictionary", *text): "give the base",
        ("logits", "--model", base, "--dictionary", "dictionary", "--feature", 99): "--feature 99",
    }
    for arguments, message in cases.items():
        assert features(*arguments, "--device", "cpu") == 2, arguments
        error = capsys.readouterr().err
        assert message in error.splitlines()[-1], (arguments, error)


def test_models_without_one_tokenizer_are_not_compared(folder, family, capsys):
    from tokenizers_for_tests import chatml_tokenizer

    chatml_tokenizer().save_pretrained("model")
    options = ("--other_model", "model", "--other_dictionary", "of_model", "--text", "texts.jsonl")
    model = ("--model", family.base, "--dictionary", "dictionary")
    assert features("universality", *model, *options) == 2
    assert "different tokenizers" in capsys.readouterr().err
