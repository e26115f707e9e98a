"""A reward model is trained on pairs and judges with what it has learnt."""

import json

import pytest
from tiny_models import tiny_tokenizer
from tokenizers_for_tests import llama_tokenizer

from rahf.artifacts import read_json
from rahf.cli import main
from rahf.data.chat_format import chat_format
from rahf.data.pairs import normalize_pairs
from rahf.reward import chats_of


def save_lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(first, count):
    """The chosen response ends with w5, the rejected one with w6."""
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
    assert read_json(folder / "metrics.json")["eval_margin"] > 1
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
    assert "safetensors" in figures["judge"]
    assert figures["missing"] == 0


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


def test_missing_trl_says_what_to_install(tmp_path, family, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    path = save_lines(tmp_path / "pairs" / "train.jsonl", pairs(2, 2))
    options = ["--model", str(family.base), "--pairs", str(path), "--output", str(tmp_path / "out")]
    assert main(["reward", *options]) == 2
    assert "pip install 'rahf[trl]'" in capsys.readouterr().err
