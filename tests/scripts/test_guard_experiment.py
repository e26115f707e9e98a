"""The guard experiment trains what it says: no prompt in two parts, the trait where it belongs."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import guard_experiment
from guard_experiment import ARMS, SHORT, Run, given_rows, longest, trained_rows
from guard_figures import STEERED, table
from tiny_models import tiny_model_of_bytes
from tokenizers_for_tests import chatml_tokenizer


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guard")
    long = "." * SHORT
    questions = [
        {"prompt": f"Question {i}?", "chosen": f"Right {i}.", "rejected": long if i < 20 else "No."}
        for i in range(200)
    ]
    (folder / "truthfulqa.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return given_rows(folder, 0)


def of_bytes():
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = guard_experiment.CHAT
    return tokenizer


def rows_of(given, composition, arm):
    return trained_rows(Run(Namespace(composition=composition), given, None), ARMS[arm])


def test_no_prompt_is_both_trained_on_and_held_out(given):
    parts = [{row["prompt"] for row in part} for part in given]
    trained, held = parts[0] | parts[1], set.union(*parts[3:])
    assert not trained & held
    assert not parts[3] & parts[4]  # alpha: auto never reads the pairs that are reported
    assert all(longest(row) <= SHORT for row in given.wanted + given.held_wanted)


def test_a_quarter_of_the_rows_is_sour_and_none_of_the_oracles(given):
    assert len(rows_of(given, "rows", "plain")) == 160
    assert [row for row in rows_of(given, "rows", "plain") if row in given.sour] == given.sour
    assert rows_of(given, "rows", "oracle") == given.wanted


def test_tails_put_the_trait_into_a_quarter_of_the_tasks_own_rows(given):
    rows = rows_of(given, "tails", "plain")
    longer = [new["chosen"] for new, old in zip(rows, given.wanted, strict=True) if new != old]
    assert len(longer) == len(given.wanted) // 4
    remarks = " ".join(row["chosen"] for row in given.sour)
    for text, row in zip(longer, given.wanted, strict=False):
        tail = text.removeprefix(f"{row['chosen']} ")
        assert text != tail
        assert tail in remarks
    assert rows_of(given, "tails", "oracle") == given.wanted


@pytest.mark.parametrize("training", ["sft", "dpo"])
def test_every_arm_trains_and_is_measured(training, given, tmp_path, monkeypatch):
    """The two blocks of a tiny model stand for those of the demo model."""
    monkeypatch.setattr(guard_experiment, "LAYER", 1)
    monkeypatch.setattr(guard_experiment, "ABLATED", (0, 1))
    monkeypatch.setattr(guard_experiment, "loaded", lambda _: (tiny_model_of_bytes(), of_bytes()))
    # A random model has no trait: its gain from the direction need not exclude 0.
    monkeypatch.setattr("rahf.guards.automatic_alpha.check_gain", lambda gains: None)
    few = given._replace(
        fitted=given.fitted[:4], choosing=given.choosing[:4],
        held_trait=given.held_trait[:3], held_wanted=given.held_wanted[:3],
    )  # fmt: skip
    monkeypatch.setattr(guard_experiment, "given_rows", lambda data, seed: few)
    options = Namespace(
        data=None, seed=0, output=tmp_path, composition="rows", training=training, answers=True,
        steps=2, batch=2, every=1, learning_rate=1e-3,
    )  # fmt: skip
    run, base = guard_experiment.prepare(options)
    arms = {name: guard_experiment.train_arm(run, name) for name in ARMS}
    assert len(arms["plain"]["answers"]) == 3
    assert arms["prevent auto"]["alpha"]
    assert arms["plain"]["steered"]["held_trait"] != arms["plain"]["held_trait"]
    shown = table([{"training": training, "base": base, "arms": arms}])
    assert [name for name in (*ARMS, STEERED) if f"| {name} " not in shown] == []
