"""A reward model is trained on pairs and judges with what it has learnt."""

import json

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_tokenizer
from tiny_runs import KilledError
from tokenizers_for_tests import llama_tokenizer

from rahf.artifacts import read_json
from rahf.cli import main
from rahf.commands.options.numbers import NUMBERS
from rahf.data.chat_format import chat_format
from rahf.data.pairs import normalize_pairs
from rahf.distributed.sigterm import StopOnSigterm
from rahf.training.trl_reward import chats_of


def save_lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(first, count):
    """Return pairs whose chosen response ends with w5, the rejected one with w6."""
    return [
        {
            "prompt": f"w{first + n}",
            "chosen": f"w{10 + n % 5} w5",
            "rejected": f"w{10 + n % 7} w6",
        }
        for n in range(count)
    ]


@pytest.mark.parametrize("rank", ["4", "0"])
def test_a_trained_reward_model_prefers_what_was_chosen(tmp_path, family, capsys, rank):
    save_lines(tmp_path / "pairs" / "train.jsonl", pairs(2, 24))
    save_lines(tmp_path / "pairs" / "test.jsonl", pairs(20, 8))
    folder = tmp_path / "reward"
    options = ["--model", family.base, "--pairs", tmp_path / "pairs", "--test_split", "test"]
    options += ["--output", folder, "--max_steps", 30, "--learning_rate", 0.02, "--use_cpu"]
    assert main(["reward", *map(str, options), "--lora_r", rank]) == 0
    assert "held-out accuracy 100.0% on 8 pairs" in capsys.readouterr().out
    metrics = read_json(folder / "metrics.json")
    assert metrics["eval_margin"] > 1
    assert metrics["train_runtime"] > 0
    chosen, rejected = (
        save_lines(
            tmp_path / f"{side}.jsonl",
            [{"prompt": row["prompt"], "response": row[side]} for row in pairs(30, 6)],
        )
        for side in ("chosen", "rejected")
    )
    judged = ["--responses", rejected, "--against", chosen, "--judge", f"reward:{folder}"]
    out = tmp_path / "out.json"
    assert main(["evaluate", "responses", *map(str, [*judged, "--output", out])]) == 0
    figures = read_json(out)
    assert figures["win_rate"]["mean"] == 0
    assert " files, " in figures["judge"]
    assert figures["missing"] == 0


@pytest.fixture
def begun(monkeypatch):
    """Record steps that are begun; the machine is switched off in the third one."""
    begun = []

    class SwitchedOff(StopOnSigterm):
        def on_step_begin(self, args, state, control, **kwargs):
            begun.append(state.global_step + 1)
            if len(begun) == 3:
                raise KilledError

    monkeypatch.setattr("rahf.training.resumable_trainer.StopOnSigterm", SwitchedOff)
    return begun


@pytest.mark.parametrize("rank", ["4", "0"])
def test_a_killed_run_goes_on_and_a_complete_one_is_left_alone(
    tmp_path, family, capsys, begun, rank
):
    save_lines(tmp_path / "pairs" / "train.jsonl", pairs(2, 24))
    given = ["--model", family.base, "--pairs", tmp_path / "pairs", "--max_steps", 4]
    given += ["--per_device_train_batch_size", 2, "--learning_rate", 0.02, "--use_cpu"]
    given = ["reward", *map(str, given), "--lora_r", rank, "--save_steps", "1", "--output"]
    whole, folder = str(tmp_path / "whole"), str(tmp_path / "out")
    assert main([*given, folder, "--split", "a_typo"]) == 2
    with pytest.raises(KilledError):
        main([*given, folder])
    assert main([*given, folder]) == 0
    assert begun == [1, 2, 3, 3, 4]
    assert main([*given, whole]) == 0
    file = "model.safetensors" if rank == "0" else "adapter_model.safetensors"
    weights, expected = (load_file(tmp_path / each / file) for each in ("out", "whole"))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    capsys.readouterr()
    assert main([*given, folder]) == 0
    assert f"reward model: complete in {folder}" in capsys.readouterr().out
    assert main([*given, folder, "--learning_rate", "0.01"]) == 2
    assert "learning_rate: 0.02 there, 0.01 now" in capsys.readouterr().err

    # Killed after its last step, before the record: nothing is trained again.
    record = tmp_path / "out" / "stage.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    begun.clear()
    assert main([*given, folder]) == 0
    assert begun == []
    assert read_json(record)["complete"]


def test_pairs_become_chats_that_the_template_can_take():
    from datasets import Dataset

    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    given = [
        {"prompt": system, "chosen": "a", "rejected": "b"},
        {"prompt": system, "chosen": "a", "rejected": "a"},
    ]
    as_messages = [
        {
            **row,
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in given
    ]
    rows = normalize_pairs(Dataset.from_list(as_messages))
    [pair] = chats_of(rows, chat_format(llama_tokenizer()))
    assert pair["prompt"] == [{"role": "user", "content": "Be brief.\n\nHi"}]
    assert pair["chosen"] == [{"role": "assistant", "content": "a"}]
    [pair] = chats_of(rows, chat_format(tiny_tokenizer()))
    assert pair["prompt"] == system


def test_a_reward_model_reads_a_continued_prompt_as_one_turn_and_refuses_tool_calls(tmp_path):
    prompt = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So"}]
    rows = [{"prompt": prompt, "chosen": " a", "rejected": " b"}]
    [pair] = chats_of(
        normalize_pairs(datasets.Dataset.from_list(rows), cache_dir=tmp_path),
        chat_format(tiny_tokenizer()),
    )
    assert pair["prompt"] == prompt[:1]
    assert pair["chosen"] == [{"role": "assistant", "content": "So a"}]
    call = {"role": "assistant", "content": "a", "tool_calls": [{"name": "f"}]}
    rows = [{"prompt": prompt[:1], "chosen": [call], "rejected": prompt[1:]}]
    pairs = normalize_pairs(datasets.Dataset.from_list(rows), cache_dir=tmp_path)
    with pytest.raises(ValueError, match="row 0: the messages hold tool_calls"):
        chats_of(pairs, chat_format(tiny_tokenizer()))


def test_missing_trl_names_what_to_install(tmp_path, family, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    path = save_lines(tmp_path / "pairs" / "train.jsonl", pairs(2, 2))
    options = ["--model", str(family.base), "--pairs", str(path), "--output", str(tmp_path / "out")]
    assert main(["reward", *options]) == 2
    assert "pip install 'rahf[trl]'" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("rank", ["4", "0"])
def test_a_reward_model_that_diverges_is_not_saved(
    tmp_path, family, capsys, monkeypatch, rank, steps
):
    # It diverges at once where no limit is.
    for kind in ("learning rate", "positive learning rate"):
        monkeypatch.setitem(NUMBERS, kind, float)
    save_lines(tmp_path / "pairs" / "train.jsonl", pairs(2, 24))
    save_lines(tmp_path / "pairs" / "test.jsonl", pairs(20, 8))
    options = ["--model", family.base, "--pairs", tmp_path / "pairs", "--test_split", "test"]
    options += ["--output", tmp_path / "out", "--max_steps", steps, "--learning_rate", 1e38]
    assert main(["reward", *map(str, options), "--use_cpu", "--lora_r", rank]) == 2
    told = capsys.readouterr().err
    assert "error: " in told
    assert "inf" in told or "nan" in told
    assert not list((tmp_path / "out").rglob("*.safetensors"))
