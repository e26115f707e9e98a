"""The guard experiment trains what it says: no prompt in two parts, the trait where it belongs."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from guard_experiment import ARMS, SHORT, Run, given_rows, longest, trained_rows


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
