"""Methods side by side: what is kept apart, what the curves show, what is measured once."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_comparison import BASE, row

from rahf.artifacts import read_json, read_lines
from rahf.cli import main
from rahf.comparison.curves import (
    Draw,
    change_within,
    everything,
    line,
    points,
    read_at,
    read_at_each,
)
from rahf.comparison.held_out import with_validation
from rahf.comparison.judging import without_loops
from rahf.comparison.results import READ_AT, readings_of
from rahf.comparison.row_recipes import row_run
from rahf.comparison.training import cost_of, train_row
from rahf.evaluation.measures import measure_model
from rahf.pipeline.inputs import load_split, measured_split
from rahf.recipe.comparison_options import CompareOptions
from rahf.recipe.files import checked_recipe
from rahf.recipe.held_out import HELD_OUT
from rahf.records.stage_record import StageRecord
from rahf.report.comparison import comparison_table, readings_table, repeated_share, row_figures

# What the curves show


@pytest.mark.parametrize("cost", ["loss", "kl"])
def test_a_line_holds_means_over_prompts_tokens_and_seeds(cost):
    given = row(0.3, 0.1)
    assert np.allclose(line(given, BASE, everything(given), cost, 1), [(0.1, 0.3), (0.2, 0.6)])
    assert np.allclose(line(given, BASE, everything(given), cost, -1), [(0.1, -0.3), (0.2, -0.6)])


def test_a_draw_counts_prompts_texts_and_seeds_as_often_as_it_says():
    given = row(0.3, 0.1, noise=0.5)
    draw = Draw(np.eye(20)[3] * 2 + np.eye(20)[5], np.eye(6)[1], np.array([0, 1]))
    [(cost, change), _] = line(given, BASE, draw, "loss", 1)
    scores = given.scores[1, 0]
    assert change == pytest.approx((2 * scores[3] + scores[5]) / 3)
    assert cost == pytest.approx(0.1)


def test_an_unreadable_verdict_is_left_out():
    given = row(0.3, 0.1)
    given.scores[0, 0, :5] = np.nan
    [(_, change), _] = line(given, BASE, everything(given), "loss", 1)
    assert change == pytest.approx(0.3)


def test_rows_are_compared_on_the_same_draws():
    rows = {"one": row(0.3, 0.1, noise=0.5), "same": row(0.3, 0.1, noise=0.5)}
    rows["better"] = row(0.5, 0.1, noise=0.5)
    alone, differences = read_at(rows, BASE, 0.1, "loss", 1)
    same = differences["one", "same"]
    assert (same.change, same.low, same.high) == (0, 0, 0)
    better = differences["better", "one"]
    assert better.low == pytest.approx(0.2)
    assert better.high == pytest.approx(0.2)
    assert alone["one"].low < alone["one"].change < alone["one"].high


def test_several_costs_are_read_as_each_alone():
    rows = {"one": row(0.3, 0.1, noise=0.5), "other": row(0.5, 0.1, noise=0.3)}
    costs = [0.05, 0.1, 0.15]
    assert read_at_each(rows, BASE, costs, "kl", 1) == [
        read_at(rows, BASE, at, "kl", 1) for at in costs
    ]


def test_the_table_of_readings_shows_what_was_not_reached():
    rows = {"dual": row(0.3, 0.01), "sft": row(0.2, 0.1)}
    table = readings_table(readings_of(rows, BASE, 1)).splitlines()
    costs = [cell.strip() for cell in table[0].split("|")[2:-1]]
    assert costs == [f"{cost} {at:g}" for cost in READ_AT for at in READ_AT[cost]]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["dual", "sft", "dual - sft"]
    assert table[2].split("|")[5].strip() == "≥ 0.60 [0.60, 0.60]"
    assert table[3].split("|")[5].strip() == "0.20 [0.20, 0.20]"
    assert table[4].split("|")[5].strip() == "0.40 [0.40, 0.40]"


def test_a_row_that_never_costs_so_much_is_reported():
    alone, _ = read_at({"cheap": row(0.3, 0.01), "dear": row(0.3, 0.1)}, BASE, 0.1, "loss", 1)
    assert not alone["cheap"].reached
    assert alone["cheap"].change == pytest.approx(0.6)
    assert alone["dear"].reached


def test_the_interval_of_a_point_covers_its_change():
    for point in points(row(0.3, 0.1, noise=0.5), BASE, "loss", 1):
        assert point.low < point.change < point.high


def test_more_is_had_for_more():
    line = [(0.1, 0.2), (0.3, 0.1), (-0.2, 0.05), (0.5, 0.6)]
    read = [change_within(line, cost) for cost in np.linspace(0, 1, 50)]
    assert read == sorted(read)
    assert read[0] == pytest.approx(0.05)
    assert read[-1] == 0.6


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0), ("a b", 0), ("a b c d", 0), ("a b c A B C", 1 / 4), ("no no no no no", 2 / 3)],
)
def test_repetition_is_the_share_of_word_runs_that_stood_before(text, share):
    assert repeated_share(text) == pytest.approx(share)


def test_an_answer_that_goes_round_in_circles_counts_as_the_bases():
    given = ["a b c a b c", "a b c d", "no no no no no"]
    assert without_loops(given, ["x", "y", "z"], 0.5) == ["a b c a b c", "a b c d", "z"]
    assert without_loops(given, ["x", "y", "z"], 0.0) == ["x", "a b c d", "z"]
    assert without_loops(given, ["x", "y", "z"], 1.0) == given


# Options


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rows": {"base": {}, "ppo": {}}}, "'ppo' does not begin with one of base, urial"),
        ({"rows": {"base": {}, "..": {}}}, r"'\.\.' does not begin with one of base, urial"),
        *(
            ({"rows": {"base": {}, name: {}}}, re.escape(f"{name!r} is also the name of a folder"))
            for name in (
                "dual-x/../../../out",
                "dual/../x",
                "dual-/etc",
                "dual-\\x",
                "dual x",
                "dual-\x1b[31m",
                "dual-ü",
                "dual-\n",
                "dual-\0",
                "",
            )
        ),
        ({"rows": {"dual": {}}}, "base is missing"),
        ({"rows": {"base": {}, "dual": 3}}, "rows.dual: 3 is not a mapping"),
        ({"trials": {"dual-x": [{}]}}, "trials.dual-x: there is no row"),
        ({"trials": {"urial": [{}]}}, "nothing to tune"),
        ({"trials": {"dual": [{}], "dpo": [{}, {}]}}, "dual: 1, dpo: 2"),
        ({"trials": {"dual": []}}, "at least one; given are dual: 0"),
        ({"trials": {"dual": [{}]}, "validation_share": 0.0}, "leaves nothing to choose"),
        ({"seeds": []}, "seeds: .* is not a list of different numbers"),
        ({"seeds": [1, 1]}, "seeds: "),
        ({"strengths": [0, 1]}, "strengths: 0 is the base"),
        ({"strengths": ["a"]}, "strengths: "),
        ({"budget": 0.0}, "budget: 0.0 is out of range"),
        ({"repetition_limit": -0.1}, "repetition_limit: -0.1 is out of range"),
    ],
)
def test_a_comparison_that_cannot_be_run_is_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        CompareOptions(**options)


# The complete comparison


@pytest.mark.slow
def test_a_comparison_trains_measures_and_reports_every_row_once(compared, capsys, monkeypatch):
    assert main(["compare", str(compared)]) == 0
    told, out = capsys.readouterr().out, Path("out/compare")
    rows = ["base", "urial", "sft", "dpo", "dual", "scit", "dpo_shift", "lorra"]
    written = (out / "comparison.md").read_text()
    assert written.strip() in told
    table, read = (part.splitlines()[2:] for part in written.strip().split("\n\n"))
    assert [part.split("|")[1].strip() for part in table] == rows
    found = read_json(out / "comparison.json")
    assert list(found["rows"]) == rows
    over = [f"{one} - {other}" for one in ("urial", *rows[4:]) for other in ("sft", "dpo")]
    assert [part.split("|")[1].strip() for part in read] == [*rows[1:], *over]
    assert len(found["readings"]) == 8
    at_budget = found["rows"]["dual"]["at_budget"]
    [same] = [each for each in found["readings"] if (each["cost"], each["at"]) == ("loss", 0.05)]
    assert same["rows"]["dual"] == at_budget
    assert found["rows"]["dual"]["seeds"] == 2
    assert found["rows"]["dual"]["training_seconds"]["mean"] > 0
    records = [read_json(path) for path in out.glob("**/dpo/**/stage.json")]
    if all("peak_memory" in record for record in records):
        largest = max(record["peak_memory"] for record in records)
        assert found["rows"]["dpo"]["peak_memory"] == largest > 0
    assert "training_seconds" not in found["rows"]["urial"]
    # Both trials of dual use the same teachers: one pair for each seed.
    assert told.count("negative: writing") == 2
    # What is chosen on is not trained on.
    split = {name: read_lines(out / f"data/{name}.jsonl") for name in ("train", "validation")}
    prompts = {name: {str(row["prompt"]) for row in rows} for name, rows in split.items()}
    assert len(prompts["validation"]) == 2
    assert not prompts["train"] & prompts["validation"]
    trials = read_json(out / "trials/sft.json")
    assert [trial["settings"] for trial in trials] == [
        {"learning_rate": 0.01},
        {"learning_rate": "2e-2"},
    ]
    best = max(trials, key=lambda trial: trial["change"])["settings"]
    assert found["settings"]["sft"] == best
    answers = read_lines(out / "answers.jsonl")
    assert [list(answer["answers"]) for answer in answers] == [rows] * 3
    assert (out / "tradeoff.png").stat().st_size > 0
    capsys.readouterr()
    assert main(["compare", str(compared)]) == 0
    again = capsys.readouterr().out
    assert "writing" not in again
    assert "measuring" not in again
    assert written.strip() in again
    # Read once more without some of the answers; the models are not asked again.
    monkeypatch.setattr("rahf.comparison.judging.repeated_share", odd := lambda text: len(text) % 2)
    assert main(["compare", str(compared), "--compare.repetition_limit", "0.5"]) == 0
    assert "measuring" not in capsys.readouterr().out
    counted = []
    for answer in read_lines(out / "answers.jsonl"):
        for name, given in answer["answers"].items():
            counted.append(answer["answers"]["base"] if odd(given) else given)
            assert answer["scores"][name] == len(counted[-1])
    assert counted != [given for answer in answers for given in answer["answers"].values()]


@pytest.mark.slow
def test_rows_may_be_done_in_parts_by_processes_at_once(compared):
    small = ["--compare.rows", "{base: {}, dual: {}}", "--compare.seeds", "[0]"]
    small += ["--compare.trials", "{dual: [{alpha: 2}, {alpha: 3}]}"]
    command = [sys.executable, "-m", "rahf", "compare", str(compared), *small]
    together = [
        subprocess.Popen([*command, "--only", "base,dual"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=300)[0] for process in together]
    assert [process.returncode for process in together] == [0, 0]
    # Two teachers, and directions and alignment of two trials: each made by one of the two.
    assert "".join(told).count(": writing") == 6
    assert "".join(told).count("dual: measuring on test") == 1
    for part in told:
        assert part.endswith(
            "measured: base, dual. Once all rows are: the same command without --only\n"
        )
    assert not Path("out/compare/comparison.json").exists()
    whole = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert whole.returncode == 0
    assert ": writing" not in whole.stdout
    assert "measuring" not in whole.stdout
    assert list(read_json(Path("out/compare/comparison.json"))["rows"]) == ["base", "dual"]


def test_a_part_of_a_comparison_names_rows_of_it(compared, capsys):
    assert main(["compare", str(compared), "--only", "dual,dua"]) == 2
    assert "--only dua: no such row; compare.rows has base, urial, sft" in capsys.readouterr().err


@pytest.mark.slow
def test_a_strength_that_is_asked_for_later_is_measured_alone(compared, monkeypatch, capsys):
    small = ["--compare.rows", "{base: {}, sft: {}}", "--compare.seeds", "[0]"]
    small += ["--compare.trials", "{}"]
    assert main(["compare", str(compared), *small]) == 0
    asked = []

    def measured(model, tokenizer, given, strengths):
        asked.append(list(strengths))
        return measure_model(model, tokenizer, given, strengths)

    monkeypatch.setattr("rahf.comparison.measuring.measure_model", measured)
    assert main(["compare", str(compared), *small, "--compare.strengths", "[0.5, 1, 2, 3]"]) == 0
    assert asked == [[0.5, 3]]
    points = read_lines(Path("out/compare/points.jsonl"))
    assert [point["strength"] for point in points] == ["0.5", "1", "2", "3"]
    kept = Path("out/compare/points.jsonl").read_text()
    [path] = Path("out/compare/test/teachers").glob("**/measures.json")
    path.unlink()
    assert main(["compare", str(compared), *small, "--compare.strengths", "[0.5, 1, 2, 3]"]) == 0
    assert asked[1:] == [[0.5, 1, 2, 3]]
    assert Path("out/compare/points.jsonl").read_text() == kept


@pytest.mark.slow
def test_the_cost_of_a_row_holds_every_stage(compared):
    given = checked_recipe(compared, {"alpha": "auto", "retain_dataset_name": "texts.jsonl"})
    run = row_run(given, "dual", {}, 0, Path("out/row"))
    trained = train_row(run, Path("out/teachers"))
    folders = [
        *Path("out/teachers").glob("*/teachers/*"),
        Path("out/row"),
        *Path("out/row").glob("*/"),
    ]
    records = [folder / "stage.json" for folder in folders if (folder / "stage.json").exists()]
    assert {record.parent.name for record in records} >= {"positive", "negative", "choice", "row"}
    seconds = {record.parent: read_json(record)["training"]["train_runtime"] for record in records}
    assert seconds[Path("out/row/choice")] > 0
    assert seconds[Path("out/row/directions")] == 0  # those of the choice
    sampling = read_json(Path("out/row/stage.json"))["training"]["sampling_seconds"]
    assert sampling > 0
    assert trained.cost["training_seconds"] == pytest.approx(sum(seconds.values()) + sampling)
    peaks = [read_json(record).get("peak_memory", 0) for record in records]
    assert trained.cost.get("peak_memory", 0) == max(peaks)


def test_sampling_the_retained_texts_is_a_cost(tmp_path):
    seconds = {"train_runtime": 2.0, "sampling_seconds": 0.5}
    StageRecord(tmp_path, {}).finish(training=seconds)
    assert cost_of([tmp_path]) == {"training_seconds": 2.5}


def test_records_of_before_memory_was_counted_are_read(tmp_path):
    for name, record in (("old", {}), ("new", {"peak_memory": 7}), ("more", {"peak_memory": 9})):
        StageRecord(tmp_path / name, {}).finish(training={"train_runtime": 2.0}, **record)
    old, new, more = (tmp_path / name for name in ("old", "new", "more"))
    assert cost_of([more, new]) == {"training_seconds": 4.0, "peak_memory": 9}
    assert cost_of([new, old]) == {"training_seconds": 4.0}


POINT = {
    "strength": 1.0,
    "scores": [1.0],
    "answers": ["a"],
    "preference_margins": [],
    "text_kl": [0],
}
POINT |= {"text_loss": [1.0], "text_tokens": [1]}


def test_the_table_shows_the_memory_of_the_seed_that_took_most():
    known = [{"training_seconds": 3.0, "peak_memory": size * 2**28} for size in (5, 6)]
    old = [{"training_seconds": 3.0}, known[0]]
    rows = {
        name: row_figures([[POINT]] * max(1, len(costs)), costs, [POINT])
        for name, costs in (("base", []), ("sft", known), ("old", old))
    }
    assert rows["sft"]["peak_memory"] == 6 * 2**28
    tied = row_figures([[POINT | {"preference_margins": [0.0, 1.0]}]], [], [POINT])
    assert tied["preference_accuracy"] == {"mean": 0.75}
    header, _, *lines = comparison_table(rows, "loss", 0.05).splitlines()
    column = [cell.strip() for cell in header.split("|")].index("peak memory, GiB")
    assert [line.split("|")[column].strip() for line in lines] == ["-", "1.50", "-"]


def test_a_wrong_setting_of_a_row_is_reported_before_anything_is_trained(compared, capsys):
    recipe = yaml.safe_load(compared.read_text())
    recipe["compare"]["trials"]["dual"][1] = {"alfa": 3}
    compared.write_text(yaml.safe_dump(recipe))
    assert main(["compare", str(compared)]) == 2
    told = capsys.readouterr().err
    assert "compare.trials.dual[1]: alfa: unknown key, did you mean alpha?" in told
    assert not Path("out/compare/teachers").exists()


def test_a_judge_that_finds_no_difference_is_refused(compared, capsys):
    assert main(["compare", str(compared), "--compare.judge", "refusal"]) == 2
    assert "the same mean" in capsys.readouterr().err
    assert main(["compare", str(compared), "--compare.judge", "taste"]) == 2
    assert "is not one of lexicon" in capsys.readouterr().err


def test_a_comparison_needs_what_it_is_measured_on(compared, capsys):
    assert main(["compare", str(compared), "--evaluation.unrelated_text", "null"]) == 2
    assert "set evaluation.unrelated_text to a file of records" in capsys.readouterr().err


@pytest.mark.parametrize("trials", [{}, {"dual": [{"alpha": 2}, {"alpha": 3}]}])
def test_prompts_that_test_share_holds_out_are_not_trained_on(compared, trials):
    keys = {"dataset_test_split": None, "test_share": 0.3, "compare.trials": trials}
    given = checked_recipe(compared, keys)
    own = with_validation(given, Path("data"))
    run = row_run(own, "dual", {}, 0, Path("row")).recipe

    def prompts(recipe, split):
        return {json.dumps(prompt) for prompt in load_split(recipe, split)["prompt"]}

    test, trained = prompts(given, HELD_OUT), prompts(run, run.data.dataset_train_split)
    chosen_on = prompts(own, "validation") if trials else set()
    assert test
    assert trained
    assert bool(chosen_on) == bool(trials)
    assert len(test | trained | chosen_on) == len(prompts(checked_recipe(compared), "train"))
    assert not trained & test
    assert not chosen_on & (trained | test)
    assert measured_split(run) is None
    with pytest.raises(ValueError, match="what is held out, has changed"):
        with_validation(checked_recipe(compared, {**keys, "test_share": 0.5}), Path("data"))
