"""A recipe at every point of a grid."""

import json
from pathlib import Path

import pytest

from rahf.cli import main
from rahf.pipeline.sweep import point_name, read_grid
from rahf.report.sweep import heat_map, sweep_table


def test_keys_with_several_values_are_axes():
    grid = read_grid(
        ["--alpha", "1,2", "--bf16=false", "--target_layers=0.2-0.4,1-2", "--seed", "3"]
    )
    assert grid.axes == {"alpha": ["1", "2"], "target_layers": ["0.2-0.4", "1-2"]}
    assert grid.fixed == ["--bf16", "false", "--seed", "3"]
    assert len(grid.points()) == 4
    assert grid.points()[1] == {"alpha": "1", "target_layers": "1-2"}
    assert read_grid(["--a", "1,2", "--b", "[1, 2]"]).fixed == ["--b", "[1, 2]"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--alpha", "1"], "nothing is varied"),
        (["--alpha"], "give every key with its value"),
        (["--alpha", "1,2,1"], "--alpha 1,2,1: a value is given twice"),
        (["--alpha=1, 1.0"], "a value is given twice"),
        (["--seed", "1,2", "--alpha", "a,a"], "--alpha a,a: a value is given twice"),
        (["--alpha", "1,2", "--alpha", "3,4"], "--alpha is given twice"),
        (["--alpha", "1", "--alpha", "3,4"], "--alpha is given twice"),
    ],
)
def test_what_is_no_grid_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        read_grid(overrides)


def test_a_sweep_that_measures_nothing_has_a_table_of_its_points_and_no_figure(tmp_path):
    results = [{"point": {"alpha": alpha}, "results": {}} for alpha in ("1", "2")]
    assert sweep_table(results).split()[-2:] == ["2", "|"]
    heat_map(results, {"alpha": ["1", "2"]}, tmp_path / "results.png")
    assert not (tmp_path / "results.png").exists()


def test_a_sweep_runs_every_point_once_with_one_set_of_teachers(recipe_file, capsys):
    command = [
        *("sweep", str(recipe_file), "--alpha", "1,2", "--target_layers", "1,1-2"),
        *("--evaluation.models", "[policy]", "--evaluation.prompts", "null"),
    ]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert told.count("positive: writing out/teachers/positive") == 1
    assert "| alpha | target_layers | preference accuracy" in told
    results = json.loads(Path("out/sweep/results.json").read_text())["points"]
    assert [tuple(each["point"].values()) for each in results] == [
        *(("1", "1"), ("1", "1-2"), ("2", "1"), ("2", "1-2")),
    ]
    assert len({each["results"]["margin"] for each in results}) == 4
    assert Path("out/sweep/results.png").stat().st_size > 0
    assert not list(Path("out/sweep").rglob("teachers"))
    # A second call finds all of it, and a wrong point is reported before anything is run.
    assert main(command) == 0
    assert "writing" not in capsys.readouterr().out
    assert main(["sweep", str(recipe_file), "--alpha", "3,0"]) == 2
    assert "alpha: 0 leaves every state" in capsys.readouterr().err
    assert not Path("out/sweep/alpha=3").exists()


@pytest.mark.parametrize("value", ["../../../out", "a/../../../b", "x/.."])
def test_a_point_never_leads_out_of_the_folder_of_the_sweep(value):
    with pytest.raises(ValueError, match=r"\.\. leads out"):
        point_name({"alpha": "1", "teachers.positive": value})


@pytest.mark.parametrize("value", ["1", "org/model", "/home/me/model", "..", "1..2"])
def test_the_folder_of_a_point_is_in_that_of_the_sweep(value):
    name = point_name({"alpha": value})
    assert (Path("/out/sweep") / name).resolve().is_relative_to("/out/sweep")
