"""A real run, its placebo, and the page: the commands that the page lists do what it says."""

import shlex
from pathlib import Path

import yaml

from rahf.artifacts import read_json, read_lines
from rahf.cli import main
from rahf.interpret.audit.verdict import audits_of
from rahf.pipeline.placebo import train_placebo
from rahf.report.page.found import read_found
from rahf.report.page.missing import missing_parts


def test_a_run_and_its_placebo_are_audited_by_the_commands_that_the_page_lists(recipe_file):
    recipe = yaml.safe_load(recipe_file.read_text())
    recipe["evaluation"]["judge"] = ["length", "refusal", "regex:w3"]
    recipe_file.write_text(yaml.safe_dump(recipe))
    command = ["align", str(recipe_file), "--learning_rate", "0.05"]
    assert main(command) == 0
    assert read_json(Path("out/stage.json"))["command"] == shlex.join(["rahf", *command])
    [row, *_] = read_lines(Path("out/evaluation/answers.jsonl"))
    assert row["by_judge"].keys() == {"length", "refusal", "regex:w3"}
    assert row["by_judge"]["length"] == row["scores"]
    [text, *_] = read_lines(Path("out/evaluation/texts.jsonl"))
    assert text["loss"].keys() == row["answers"].keys()

    train_placebo(Path("out"), Path("placebo"), seed=1)
    found = read_found([Path("out"), Path("placebo")])
    assert [run.folder for run in found.placebos] == [Path("placebo/adapter")]
    listed = {part.part: part.command for part in missing_parts(found)}
    words = shlex.split(listed["Placebos"])
    assert words[:3] == ["rahf", "align", "placebo/adapter/recipe.yaml"]
    assert main(words[1:]) == 0

    [audit] = audits_of(read_found([Path("out"), Path("placebo")]))
    assert audit.skipped == []
    by_name = {line.looked.name: line.looked for line in audit.lines}
    assert by_name.keys() == {
        "length",
        "repetition",
        "refusal",
        "empty",
        "regex:w3",
        "ability loss",
    }
    assert {len(looked.placebos) for looked in by_name.values()} == {1}
    assert [name for name, looked in by_name.items() if looked.asked] == ["length"]
    assert main(["report", "out", "placebo"]) == 0
    page = Path("out/report.html").read_text()
    assert f"<code>{shlex.join(['rahf', *command])}</code>" in page
    assert "<code>rahf report out placebo</code>" in page
