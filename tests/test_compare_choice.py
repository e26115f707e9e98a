"""The choice beside a grid: what is picked by, what is reported, what a stopped run keeps."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import recipe_file  # noqa: F401
from tiny_runs import KilledError

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import compare_choice


def test_the_best_of_the_grid_is_picked_on_other_pairs_than_those_of_the_figures(
    recipe_file,  # noqa: F811
    monkeypatch,
    capsys,
):
    monkeypatch.setattr(compare_choice, "ALPHAS", (0.5, 2.0))
    monkeypatch.setattr(compare_choice, "WINDOWS", ("1-2",))
    lines = [json.loads(line) for line in Path("pairs/train.jsonl").read_text().splitlines()]
    Path("pairs/test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
    given = [str(recipe_file), "--shift", "mean", "--seeds", "7", "--budgets", "0.01", "0.02"]
    trained, policy = [], compare_choice.Trial.policy

    def killed_in_the_second(self, recipe, directions, *neutral):
        trained.append(recipe.method.alpha)
        if len(trained) == 2:
            raise KilledError
        return policy(self, recipe, directions, *neutral)

    monkeypatch.setattr(compare_choice.Trial, "policy", killed_in_the_second)
    with pytest.raises(KilledError):
        compare_choice.main(given)
    compare_choice.main(given)
    assert trained[:3] == [0.5, 2.0, 2.0]
    assert len(trained) == 5  # and one for each budget
    assert "chosen - best" in capsys.readouterr().out

    trial = json.loads(Path("outputs/compare_choice/7/trial.json").read_text())
    picked = [np.mean(point["picked"]) for point in trial["points"]]
    assert picked == sorted(picked, reverse=True)
    assert trial["best"]["folder"] == trial["points"][0]["folder"]
    for found in (trial["base"], trial["best"], *trial["choices"]):
        assert len(found["test"]) == 3
    assert trial["base"]["kl"] == pytest.approx(0, abs=1e-6)
    assert all(len(point["picked"]) == 2 for point in trial["points"])
    for choice in trial["choices"]:
        assert choice["equal"] is None or choice["equal"]["kl"] <= choice["kl"]
        assert trial["seconds"][f"choice at {choice['budget']:g}"] > 0
    compare_choice.main(given)
    assert len(trained) == 5
