"""The baseline DPO: trained on our rows, saved as our adapters are."""

import json
import math
import os
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import EOS, lora, tiny_dataset, tiny_tokenizer

from rahf.artifacts import read_json, read_lines, write_json
from rahf.cli import main
from rahf.distributed.sigterm import StopOnSigterm
from rahf.models.adapters import load_model
from rahf.models.likelihood import pair_likelihoods
from rahf.recipe.training_arguments import training_annotations
from rahf.training.checkpoints import MANIFEST, write_manifest
from rahf.training.cost import CLOCK_FILE
from rahf.training.resumable_trainer import STAGING
from rahf.training.trl_dpo import train_dpo


def trained(family, folder, rows, **arguments):
    given = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "logging_steps": 1}
    given |= {"disable_tqdm": True, **arguments}
    return train_dpo(family.load_base(), rows, tiny_tokenizer(), lora(), folder, given)


def test_the_first_loss_is_that_of_no_preference_and_the_second_follows_our_likelihoods(
    family, tmp_path
):
    rows = tiny_dataset(4)
    trained(family, tmp_path / "one", rows, learning_rate=0.05)
    model = load_model(tmp_path / "one")
    own = pair_likelihoods(model, rows, EOS)
    base = pair_likelihoods(family.load(None), rows, EOS)
    margin = own.chosen - own.rejected - (base.chosen - base.rejected)
    trained(family, tmp_path / "two", rows, learning_rate=0.05, max_steps=2)
    log = [line["loss"] for line in read_lines(tmp_path / "two" / "log.jsonl") if "loss" in line]
    assert log[0] == pytest.approx(math.log(2), abs=1e-4)
    expected = -torch.nn.functional.logsigmoid(0.1 * margin).mean().item()
    assert log[1] == pytest.approx(expected, abs=1e-3)
    assert log[1] < log[0]


def test_a_training_that_diverges_saves_nothing_and_ends_with_an_error(
    family, tmp_path, capsys, monkeypatch
):
    # It diverges at once where no limit is.
    monkeypatch.setitem(training_annotations(), "learning_rate", float)
    monkeypatch.setattr("rahf.recipe.fields._FURTHEST", math.inf)
    path = recipe_of(family, tmp_path, learning_rate=1e38, max_steps=4)
    assert main(["dpo", str(path)]) == 2
    assert "error: the " in (told := capsys.readouterr().err)
    assert "inf" in told or "nan" in told
    assert not list(tmp_path.rglob("adapter_model.safetensors"))


def recipe_of(family, folder, **keys):
    """Return a recipe of six pairs in a file, for the CPU."""
    pairs = [
        {"prompt": f"w{n}", "chosen": f"w{n} w5", "rejected": f"w{n} w6"} for n in range(8, 14)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    recipe = {
        "model_name_or_path": str(family.base),
        "dataset_name": str(path),
        "dataset_test_split": None,
        "output_dir": str(folder / "out"),
        "max_steps": 12,
        "learning_rate": 0.02,
        "use_cpu": True,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | keys))
    return folder / "recipe.yaml"


def test_the_command_trains_on_a_recipes_rows_and_leaves_an_adapter(family, tmp_path, capsys):
    recipe, path = recipe_of(family, tmp_path), tmp_path / "pairs.jsonl"
    assert main(["dpo", str(recipe), "--beta", "0.2", "--lora_r", "4"]) == 0
    folder = tmp_path / "out" / "dpo"
    assert f"DPO: {folder}, loss" in capsys.readouterr().out
    assert read_json(folder / "metrics.json")["settings"]["beta"] == 0.2
    assert read_json(folder / "adapter_config.json")["r"] == 4
    options = ["--model", folder, "--pairs", path, "--output", tmp_path / "out.json"]
    assert main(["evaluate", "preferences", *map(str, options)]) == 0
    assert read_json(tmp_path / "out.json")["implicit_reward"]["accuracy"]["mean"] == 1


@pytest.fixture
def begun(monkeypatch):
    """Record steps that are begun; the scheduler takes the machine away in the third one."""
    begun = []

    class TakenAway(StopOnSigterm):
        def on_step_begin(self, args, state, control, **kwargs):
            begun.append(state.global_step + 1)
            if len(begun) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("rahf.training.resumable_trainer.StopOnSigterm", TakenAway)
    return begun


def test_a_stopped_run_goes_on_and_a_complete_one_is_left_alone(family, tmp_path, capsys, begun):
    recipe, folder = recipe_of(family, tmp_path, max_steps=5, lora_dropout=0.2), tmp_path / "dpo"
    given = ["dpo", str(recipe), "--per_device_train_batch_size", "2", "--output"]
    with pytest.raises(SystemExit) as left:
        main([*given, str(folder)])
    assert left.value.code == 0
    assert "the same command resumes from" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-3", "stage.json"]
    kept = folder / "checkpoint-3"
    (kept / MANIFEST).unlink()
    write_json(kept / CLOCK_FILE, {"seconds": 1000.0})
    write_manifest(kept)
    assert main([*given, str(folder)]) == 0
    assert begun == [1, 2, 3, 4, 5]
    assert read_json(folder / "stage.json")["training"]["train_runtime"] > 1000
    assert main([*given, str(tmp_path / "whole")]) == 0
    weights, expected = (
        load_file(each / "adapter_model.safetensors") for each in (folder, tmp_path / "whole")
    )
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not (folder / STAGING).exists()
    assert not (folder / "README.md").exists()

    written = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    assert main([*given, str(folder)]) == 0
    assert f"DPO: complete in {folder}" in capsys.readouterr().out
    assert main([*given, str(folder), "--beta", "0.3"]) == 2
    assert "beta: 0.1 there, 0.3 now" in capsys.readouterr().err
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == written
    assert main([*given, str(folder), "--save_strategy", "no", "--alpha", "7"]) == 0


def test_checkpoints_are_kept_as_the_recipe_says(family, tmp_path):
    recipe = recipe_of(family, tmp_path, max_steps=4, save_steps=1, save_total_limit=2)
    assert main(["dpo", str(recipe)]) == 0
    kept = sorted(path.name for path in (tmp_path / "out" / "dpo").glob("checkpoint-*"))
    assert kept == ["checkpoint-3", "checkpoint-4"]
    assert (tmp_path / "out" / "dpo" / "checkpoint-4" / "manifest.json").exists()
    assert main(["dpo", str(recipe), "--save_strategy", "no", "--output", str(tmp_path / "b")]) == 0
    assert not list((tmp_path / "b").glob("checkpoint-*"))
