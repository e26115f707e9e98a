"""Adapters and directions in other forms, and on a Hub."""

import json
import os
import shutil
import socket
from pathlib import Path

import gguf
import pytest
import torch
import yaml
from gguf_models import read_control_vector
from hub_server import TOKEN, running_hub
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from tiny_models import D_MODEL, tiny_tokenizer
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM

from rahf.artifacts import alone, read_json, write_json
from rahf.cli import main
from rahf.directions.vectors import Directions
from rahf.export import gguf as gguf_file
from rahf.export import merged as merging
from rahf.export.gguf import (
    that_llama_cpp_steers,
    write_control_vector,
)
from rahf.export.hub import collect

BASE = "someone/tiny-llama"


def some_directions(layers=(0, 1, 3), **metadata):
    vectors = torch.randn(len(layers), D_MODEL, generator=torch.Generator().manual_seed(0))
    return Directions(layers, vectors, {"model": BASE, "model_type": "mistral", **metadata})


@pytest.fixture
def run_folder(family, tmp_path):
    """Write what a run leaves: an adapter, its recipe and its metrics, and files that are never
    uploaded.
    """
    folder = tmp_path / "run"
    model = AutoPeftModelForCausalLM.from_pretrained(family.adapters["positive"])
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    recipe = {
        "method": "dual",
        "model_name_or_path": str(family.base),
        "dataset_name": "pairs",
        "reference": "base",
        "target_layers": "1-2",
        "alpha": 2.0,
        "shift": "mean",
        "positions": "response",
        "distance": "l2",
        "layer_scale": "shift",
        "retain_weight": 0.0,
        "lora_r": 2,
        "lora_alpha": 4,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    metrics = {"eval_repr/reached/layer_1": 0.5, "eval_repr/reached": 0.5}
    metrics |= {"eval_repr/cosine/layer_1": 0.7}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "stage.json").write_text("{}")
    (folder / "teachers").mkdir()
    return folder


def test_a_control_vector_holds_the_vectors_under_llama_cpps_numbers(tmp_path):
    directions = some_directions((1, 3))
    path = tmp_path / "new" / "vector.gguf"
    write_control_vector(directions, path, "mistral")
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.3"]
    for tensor, vector in zip(reader.tensors, directions.vectors, strict=True):
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.shape.tolist() == [D_MODEL]
        assert torch.equal(torch.tensor(tensor.data), vector)
    assert [file.name for file in path.parent.iterdir()] == ["vector.gguf"]


def tensor_file(path, *tensors, architecture="controlvector"):
    writer = gguf.GGUFWriter(path, architecture)
    for name, tensor in tensors:
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_control_vector_is_read_as_the_directions_it_was_written_from(
    recipe_file, tmp_path, capsys
):
    directions, path = some_directions((1, 3)), tmp_path / "joy.gguf"
    write_control_vector(directions, path, "gemma3_text")
    back = gguf_file.read_control_vector(path)
    assert back.layers == (1, 3)
    assert torch.equal(back.vectors, directions.vectors)
    assert back.metadata["model_type"] == "gemma3_text"
    assert main(["directions", str(recipe_file), "--from", str(path)]) == 0
    assert "layers 1, 3, of width 16" in capsys.readouterr().out
    found = Directions.load("out/reading/joy")
    assert torch.equal(found.vectors, directions.vectors)
    assert found.metadata["increments"] == "true"
    # A tool that numbers nothing but blocks from 1 writes no metadata at all.
    tensor_file(tmp_path / "own.gguf", ("direction.2", torch.ones(D_MODEL)))
    assert gguf_file.read_control_vector(tmp_path / "own.gguf").layers == (2,)
    assert main(["directions", str(recipe_file), "--from", str(path)]) == 0  # again
    assert main(["directions", str(recipe_file), "--output", "out/reading/joy"]) == 2
    assert "holds a result of `rahf directions --from`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [
        ("joy", {"evidence.json": '{"made_by": "rahf directions"}'}, "a result of `rahf directi"),
        ("bank", {"bank.json": '{"made_by": "rahf directions --bank"}'}, "directions --bank`"),
        ("joy", {"directions.safetensors": "x"}, "is there, and not from `rahf directions --from`"),
        (".", {}, "give --output FOLDER"),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_a_control_vector_replaces_nothing_but_itself(
    recipe_file, tmp_path, capsys, name, there, said, given
):
    path, folder = tmp_path / f"{name}.gguf", Path("out/reading", name)
    write_control_vector(some_directions((1, 3)), path, "llama")
    for file, text in there.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    options = ["--output", str(folder)] if given and there else []
    assert main(["directions", str(recipe_file), "--from", str(path), *options]) == 2
    assert said in capsys.readouterr().err
    assert sorted(there) == sorted(each.name for each in folder.glob("[a-z]*.*") if there)


@pytest.mark.parametrize(
    ("tensors", "options", "said"),
    [
        ((), (), "holds no tensor"),
        ((("direction.0", torch.ones(16)),), (), "N being a block from 1"),
        ((("direction.1", torch.ones(16)), ("x", torch.ones(16))), (), "holds a tensor 'x'"),
        ((("direction.1", torch.ones(16)), ("direction.2", torch.ones(8))), (), "[8, 16]"),
        ((("direction.1", torch.ones(16).half()),), (), "direction.1 is F16"),
        ((("direction.1", torch.ones(8)),), (), "width 8, but the base's hidden states have 16"),
        ((("direction.9", torch.ones(16)),), (), "layer 9 does not exist, the base has 0 to 3"),
        ((("direction.1", torch.full((16,), torch.nan)),), (), "not finite"),
        ((("direction.1", torch.ones(16)),), ("--fit", "probe"), "--from does not read --fit"),
        (None, (), "is damaged or no GGUF file"),
        ((("direction.1", torch.zeros(16)),), (), "are zero and change nothing"),
        ((("direction.1", torch.full((16,), 1e-45)),), (), "are zero and change nothing"),
        ((("direction.1", torch.full((16,), 3e38)),), (), "not finite"),
        ("llama", (), "is of the architecture 'llama', not 'controlvector'"),
    ],
)
def test_a_file_that_is_no_control_vector_of_the_model_is_refused(
    recipe_file, tmp_path, capsys, tensors, options, said
):
    path = tmp_path / "vector.gguf"
    if tensors is None:
        path.write_bytes(b"GGUG" + b"0" * 64)
    elif tensors == "llama":
        tensor_file(path, ("direction.1", torch.ones(16)), architecture=tensors)
    else:
        tensor_file(path, *tensors)
    assert main(["directions", str(recipe_file), "--from", str(path), *options]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) == 1


def test_directions_of_layer_0_alone_have_no_control_vector():
    with pytest.raises(ValueError, match="layer 0 only"):
        that_llama_cpp_steers(some_directions((0,)))


def test_directions_are_exported_in_every_form(tmp_path, capsys):
    directions = some_directions(depth="4")
    directions.save(tmp_path / "d")
    options = ("--alpha", "2", "--increments", "--layers", "0.3-1.0")
    assert main(["export", str(tmp_path / "d"), "--output", str(tmp_path / "out"), *options]) == 2
    assert "requests [2] as well" in capsys.readouterr().err
    options = ("--alpha", "2", "--increments")
    assert main(["export", str(tmp_path / "d"), "--output", str(tmp_path / "out"), *options]) == 0
    expected = 2 * directions.increments()
    for folder, steering in (("d", "directions.increments()"), ("out", "directions")):
        card = collect(tmp_path / folder, "me/warm").files["README.md"].decode()
        assert f"steer(model, {steering}, 1.0" in card
    assert torch.equal(Directions.load(tmp_path / "out").vectors, expected.vectors)
    vector = read_control_vector(tmp_path / "out" / "control_vector.gguf")
    # Nothing is added after block 0, so that block 1 is given its full vector.
    assert torch.equal(vector.vectors, 2 * directions.only((1, 3)).increments().vectors)
    assert "without layer 0" in capsys.readouterr().out


def test_merged_weights_predict_what_the_adapter_predicts(family, tmp_path, capsys):
    adapter = family.adapters["positive"]
    assert main(["export", str(adapter), "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "KL divergence" in told
    assert "same likeliest token 100.0%" in told
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
        base = family.load_base()(input_ids=ids).logits
        assert (base - expected).abs().max() > 0.1
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out" / "adapter")
    names = ["adapter", "export.json", "merged"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert read_json(tmp_path / "out/export.json")["source"] == str(adapter)


def test_a_merge_that_changes_the_model_is_not_kept(family, tmp_path, capsys, monkeypatch):
    whole = AutoModelForCausalLM.from_pretrained

    def broken(*args, **options):
        loaded = whole(*args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with the report of loading
        model.get_decoder().layers[0].mlp.down_proj.weight.data *= 3
        return loaded

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", broken)
    options = ("--formats", "merged", "--output", str(tmp_path / "out"))
    assert main(["export", str(family.adapters["positive"]), *options]) == 2
    assert "differs from base and adapter" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tokenizer_that_gives_no_token_for_a_text_is_not_the_models(family, tmp_path):
    empty = tiny_tokenizer()
    empty.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]+"), "removed")
    with pytest.raises(ValueError, match=r"gives no token for .*not the model's"):
        merging.write_merged(family.adapters["positive"], tmp_path / "out", empty)


def test_the_difference_is_that_of_the_formula():
    before, after = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.5, 1.0], [0.0, 1.0]])
    found = merging.difference(before, after)
    assert found.largest == 2.0
    assert found.same_top == 0.5
    p, q = before.softmax(-1), after.softmax(-1)
    expected = sum((p[row] * (p[row] / q[row]).log()).sum().item() for row in (0, 1)) / 2
    assert found.divergence == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("formats", "message"),
    [("gguf", "an adapter cannot be exported as gguf, but as adapter, merged")],
)
def test_formats_that_do_not_apply_are_refused(family, tmp_path, capsys, formats, message):
    source = str(family.adapters["positive"])
    options = ("--formats", formats, "--output", str(tmp_path / "out"))
    assert main(["export", source, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "{0} holds neither an adapter nor directions; give the folder of one."),
        (None, "there is no folder {0} (working directory: "),
        (["stage.json"], "{0} holds neither an adapter nor directions: its training has not ended"),
        (
            ["checkpoint-5/adapter_config.json"],
            "its training has not ended; the same rahf align command resumes it.",
        ),
        (
            ["teachers/positive/adapter_config.json", "teachers/positive/stage.json"],
            "resumes it, or give one that is inside: {0}/teachers/positive.",
        ),
        (
            ["some/directions.safetensors"],
            "the folder of one, or give one that is inside: {0}/some.",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["export", "push"])
def test_a_folder_without_an_adapter_reports_what_to_do(tmp_path, capsys, command, files, said):
    folder = tmp_path / "run"
    for file in files or ():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")
    if files is not None:
        folder.mkdir(exist_ok=True)
    rest = ["--output", str(tmp_path / "out")] if command == "export" else ["me/warm"]
    assert main([command, str(folder), *rest]) == 2
    assert said.format(folder) in capsys.readouterr().err


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # This Hub keeps large files by the LFS protocol, as those without the Xet storage do.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with running_hub() as server:
        yield server


def push(source, *options):
    return main(["push", str(source), "me/warm", *options])


def test_an_adapter_is_pushed_with_its_card_and_without_what_stays_at_home(run_folder, hub, capsys):
    assert push(run_folder, "--base", BASE, "--endpoint", hub.address) == 0
    repository = hub.repositories["me/warm"]
    assert repository["private"] is True
    assert sorted(repository["files"]) == [
        *("README.md", "adapter_config.json", "adapter_model.safetensors"),
        *("metrics.json", "recipe.yaml"),
    ]
    weights = (run_folder / "adapter_model.safetensors").read_bytes()
    assert repository["files"]["adapter_model.safetensors"] == weights
    config = json.loads(repository["files"]["adapter_config.json"])
    assert config["base_model_name_or_path"] == BASE
    card = repository["files"]["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == BASE
    for text in ('from_pretrained("me/warm")', "RAHF-DUAL", "data: pairs", "target layers: 1"):
        assert text in card
    # Nothing reveals where the base is on this machine.
    assert not any(str(run_folder.parent).encode() in text for text in repository["files"].values())
    told = capsys.readouterr()
    assert "(private)" in told.out
    assert TOKEN not in told.out + told.err


def test_directions_are_pushed_with_their_evidence(tmp_path, hub, capsys):
    some_directions(data="pairs", fit="mean").save(tmp_path / "d")
    evidence = {
        "layers": [0, 1, 3],
        "made_with": {"fit": "mean"},
        "norm": {"mean": [0.1] * 3},
        "explained": {"mean": [0.2] * 3},
        "separability": {"mean": [0.9] * 3},
        "halves": {"mean": [0.95] * 3},
        "agreement": {},
    }
    (tmp_path / "d" / "evidence.json").write_text(json.dumps(evidence))
    assert push(tmp_path / "d", "--public", "--endpoint", hub.address) == 0
    repository = hub.repositories["me/warm"]
    assert repository["private"] is False
    assert sorted(repository["files"]) == ["README.md", "directions.safetensors", "evidence.json"]
    card = repository["files"]["README.md"].decode()
    for text in ('hf_hub_download("me/warm"', "layers: 0, 1, 3", "| 0.900", f'"{BASE}"'):
        assert text in card
    (tmp_path / "back").mkdir()
    path = tmp_path / "back" / "directions.safetensors"
    path.write_bytes(repository["files"]["directions.safetensors"])
    assert torch.equal(Directions.load(path).vectors, some_directions().vectors)


def test_a_dry_run_shows_the_files_and_sends_nothing(run_folder, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert push(run_folder, "--base", BASE, "--dry_run") == 0
    told = capsys.readouterr().out
    upload = collect(run_folder, "me/warm", BASE)
    for name, size in upload.sizes().items():
        assert f"{size:,}  {name}" in told
    assert "nothing was sent" in told
    assert "base_model: someone/tiny-llama" in told


def test_a_folder_that_nobody_can_write_to_is_sent_without_a_lock(run_folder, capsys, monkeypatch):
    real = os.access
    monkeypatch.setattr("os.access", lambda path, mode: path != run_folder and real(path, mode))
    with alone(run_folder):
        assert push(run_folder, "--base", BASE, "--dry_run") == 0
    assert "nothing was sent" in capsys.readouterr().out


def test_what_is_public_is_not_taken_for_private(run_folder, hub, capsys):
    hub.repositories["me/warm"] = {"private": False, "files": {}}
    assert push(run_folder, "--base", BASE, "--endpoint", hub.address) == 2
    assert "exists and is public; nothing was sent" in capsys.readouterr().err
    assert hub.repositories["me/warm"]["files"] == {}
    options = ("--base", BASE, "--endpoint", hub.address, "--public")
    assert push(run_folder, *options) == 0


def test_without_a_token_it_is_said_where_one_comes_from(run_folder, hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert push(run_folder, "--base", BASE, "--endpoint", hub.address) == 2
    assert "no token of the Hub was found" in capsys.readouterr().err
    assert hub.repositories == {}


def test_without_a_network_nothing_is_tried_twice(run_folder, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert push(run_folder, "--base", BASE, "--endpoint", address) == 2
    told = capsys.readouterr().err
    assert f"{address} cannot be reached" in told
    assert TOKEN not in told


@pytest.mark.parametrize(("status", "reason"), [(401, "not valid"), (403, "may not write")])
def test_a_refusal_is_explained_and_never_shows_the_token(run_folder, hub, capsys, status, reason):
    hub.refuse = status
    assert push(run_folder, "--base", BASE, "--endpoint", hub.address) == 2
    told = capsys.readouterr()
    assert f"answered {status} for me/warm: the token" in told.err
    assert reason in told.err
    assert TOKEN not in told.out + told.err


def test_a_name_that_is_none_is_refused(run_folder, hub, capsys):
    options = ("--base", BASE, "--endpoint", hub.address)
    assert main(["push", str(run_folder), "me/we/all", *options]) == 2
    assert "not the name of a repository" in capsys.readouterr().err


def test_a_base_that_only_this_machine_has_is_refused(run_folder, capsys):
    assert push(run_folder, "--dry_run") == 2
    assert "not a name on the Hub" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path, family, capsys):
    assert push(tmp_path, "--dry_run") == 2
    assert "neither an adapter nor directions" in capsys.readouterr().err
    assert push(Path(family.adapters["positive"]), "--base", BASE, "--dry_run") == 2
    assert "no recipe.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["", "me", "me/we/all", "me/wa rm", "me/-warm", "me/warm\n", "../warm", "me/" + "x" * 100],
)
def test_a_dry_run_refuses_a_name_that_is_none(run_folder, capsys, name):
    assert main(["push", str(run_folder), name, "--base", BASE, "--dry_run"]) == 2
    printed = capsys.readouterr()
    assert "not the name of a repository" in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


def weights(change):
    """Return what rewrites the tensors of an adapter's folder."""

    def rewrite(folder):
        file = folder / "adapter_model.safetensors"
        tensors = {name: value.clone() for name, value in load_file(file).items()}
        save_file(change(tensors), file, {"format": "pt"})

    return rewrite


def setting(**values):
    """Return what changes the configuration of an adapter's folder."""

    def rewrite(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return rewrite


def with_nan(tensors):
    next(iter(tensors.values()))[0, 0] = float("nan")
    return tensors


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


BAD_ADAPTERS = {
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "no adapter_model.safetensors",
        "no adapter_model.safetensors",
    ),
    "NaN": (weights(with_nan), "NaN or infinity", "NaN or infinity"),
    "no tensors": (weights(lambda tensors: {}), "tensors are missing", "holds no LoRA tensors"),
    "cut": (
        written("adapter_model.safetensors", "cut"),
        "not a complete safetensors file",
        "not a complete safetensors file",
    ),
    "half": (
        weights(lambda tensors: {k: v for k, v in tensors.items() if "lora_A" in k}),
        "tensors are missing",
        "lora_B.weight; train the adapter again",
    ),
    "another rank": (setting(r=4), "does not fit", "has rank 2, but adapter_config.json r: 4"),
    "no rank": (setting(r="two"), "adapter", "r: 'two' is not a rank"),
    "an infinite scale": (
        setting(lora_alpha=float("inf")),
        "predicts NaN or infinity",
        "lora_alpha: not finite",
    ),
    "a list": (
        written("adapter_config.json", "[1]"),
        "adapter_config.json: cannot be used",
        "holds no names and values",
    ),
}
"""How an adapter is damaged, and the errors of generate, export and push."""


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_an_adapter_that_is_not_intact_is_not_exported(run_folder, tmp_path, capsys, case):
    spoil, generating, sending = BAD_ADAPTERS[case]
    spoil(run_folder)
    out, prompts = tmp_path / "out", tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "w2"}')
    asked = ["--prompts", str(prompts), "--output", str(tmp_path / "said.jsonl")]
    asked += ["--device", "cpu", "--max_new_tokens", "2"]
    for arguments, said in (
        (["generate", "--model", str(run_folder), *asked], generating),
        (["push", str(run_folder), "me/warm", "--base", BASE, "--dry_run"], sending),
        (["export", str(run_folder), "--output", str(out)], sending),
    ):
        assert main(arguments) == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert said in line
    assert not (tmp_path / "said.jsonl").exists()
    assert not out.exists()


@pytest.mark.parametrize(
    ("base", "said"),
    [(None, "this adapter names no base"), ("/not/here", "the base '/not/here' of this adapter")],
)
def test_an_adapter_without_its_base_needs_one(run_folder, tmp_path, capsys, base, said):
    setting(base_model_name_or_path=base)(run_folder)
    assert main(["export", str(run_folder), "--output", str(tmp_path / "out")]) == 2
    assert f"error: {run_folder}: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("recipe.yaml", "[1]", "recipe.yaml holds no names and values"),
        ("recipe.yaml", "method: magic", "method: 'magic' is not one of dual"),
        ("metrics.json", "[]", "metrics.json holds no names and values"),
        ("metrics.json", '{"models": {"base": {"x": [NaN]}}}', "metrics.json: models: not finite"),
    ],
)
def test_a_card_is_filled_from_intact_files_only(run_folder, capsys, name, text, said):
    (run_folder / name).write_text(text)
    assert push(run_folder, "--base", BASE, "--dry_run") == 2
    assert said in capsys.readouterr().err


def test_weights_that_predict_nothing_finite_are_not_merged(family, tmp_path, capsys):
    base = shutil.copytree(family.base, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = torch.full_like(tensors["lm_head.weight"], 3e38)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    options = ["--output", str(tmp_path / "out"), "--base", str(base)]
    assert main(["export", str(family.adapters["positive"]), *options]) == 2
    assert f"on {base} predicts NaN or infinity" in capsys.readouterr().err


def test_directions_are_not_exported_onto_themselves(tmp_path, capsys):
    some_directions().save(tmp_path / "d")
    write_json(tmp_path / "d/evidence.json", {"made_by": "rahf directions"})
    before = (tmp_path / "d/directions.safetensors").read_bytes()
    for source in ("d", "d/directions.safetensors"):
        options = ["--output", str(tmp_path / "d"), "--alpha", "2"]
        assert main(["export", str(tmp_path / source), *options]) == 2
        assert "would overwrite the directions" in capsys.readouterr().err
        assert main(["export", str(tmp_path / source), *options, "--formats", "gguf"]) == 0
    assert (tmp_path / "d/directions.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda layers, vectors: (layers, vectors * float("nan")), "are not finite"),
        (lambda layers, vectors: (layers, vectors / 0), "are not finite"),
        (lambda layers, vectors: ((0, 1, 99), vectors), "hold layer 99, the model 4 blocks"),
        (lambda layers, vectors: (layers, vectors[:, :5]), "width 5"),
    ],
    ids=["nan", "infinity", "layer 99", "width"],
)
def test_directions_that_fit_no_model_stay_at_home(family, tmp_path, capsys, change, said):
    good = some_directions(depth="4", model=str(family.base))
    layers, vectors = change(good.layers, good.vectors)
    # Written without the checks of `save`, as another program would.
    path = tmp_path / "d" / "directions.safetensors"
    path.parent.mkdir()
    save_file(
        {
            f"layer.{layer}": vector.contiguous()
            for layer, vector in zip(layers, vectors, strict=True)
        },
        path,
        {"rahf": json.dumps(dict(good.metadata))},
    )
    assert push(path.parent, "--base", BASE, "--dry_run") == 2
    assert said in capsys.readouterr().err
    assert main(["export", str(path.parent), "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_checked_of_directions_is_told(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "d"
    some_directions(depth="4").save(folder)
    export = ["export", str(folder), "--formats", "safetensors", "--output", str(tmp_path / "out")]
    told = f"{folder}: width not checked, since the base {BASE} has no config.json here"
    assert push(folder, "--base", BASE, "--dry_run") == 0
    assert told in capsys.readouterr().out
    assert main(export) == 0
    assert told in capsys.readouterr().out
    cached = tmp_path / "config.json"
    monkeypatch.setattr("rahf.export.checks.try_to_load_from_cache", lambda *_: str(cached))
    for width, status in ((some_directions().vectors.shape[1], 0), (5, 2)):
        cached.write_text(json.dumps({"num_hidden_layers": 4, "hidden_size": width}))
        assert push(folder, "--base", BASE, "--dry_run") == status
        assert "not checked" not in capsys.readouterr().out


ENDPOINTS = ["nonsense", "http://", "http://[", "ftp://127.0.0.1:1", "http://127.0.0.1:1/a b"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_address_that_is_none_is_one_line(run_folder, hub, capsys, endpoint):
    assert push(run_folder, "--base", BASE, "--endpoint", endpoint) == 2
    printed = capsys.readouterr().err
    [line] = printed.splitlines()
    assert line.startswith("error: ")
    assert TOKEN not in printed
