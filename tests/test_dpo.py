"""The baseline DPO: trained on our rows, saved as our adapters are."""

import json
import math

import pytest
import torch
import yaml
from tiny_models import EOS, lora, tiny_dataset, tiny_tokenizer

from rahf.adapters import load_model
from rahf.artifacts import read_json, read_lines
from rahf.cli import main
from rahf.dpo import train_dpo
from rahf.likelihood import pair_likelihoods


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


def test_the_command_trains_on_a_recipes_rows_and_leaves_an_adapter(family, tmp_path, capsys):
    pairs = [
        {"prompt": f"w{n}", "chosen": f"w{n} w5", "rejected": f"w{n} w6"} for n in range(8, 14)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    recipe = {
        "model_name_or_path": str(family.base),
        "dataset_name": str(path),
        "dataset_test_split": None,
        "output_dir": str(tmp_path / "out"),
        "max_steps": 12,
        "learning_rate": 0.02,
        "use_cpu": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["dpo", str(tmp_path / "recipe.yaml"), "--beta", "0.2", "--lora_r", "4"]) == 0
    folder = tmp_path / "out" / "dpo"
    assert f"DPO: {folder}, loss" in capsys.readouterr().out
    assert read_json(folder / "metrics.json")["settings"]["beta"] == 0.2
    assert read_json(folder / "adapter_config.json")["r"] == 4
    options = ["--model", folder, "--pairs", path, "--output", tmp_path / "out.json"]
    assert main(["evaluate", "preferences", *map(str, options)]) == 0
    assert read_json(tmp_path / "out.json")["implicit_reward"]["accuracy"]["mean"] == 1
