"""What a page would show if it were there, and the command that makes it."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from rahf.artifacts import RECIPE_FILE
from rahf.report.page.blocks import Missing
from rahf.report.page.found import Found
from rahf.report.page.reading import last_reading

PLACEBOS = 3


def missing_parts(found: Found) -> list[Missing]:
    """Return the parts that the page leaves out."""
    run = found.runs[0] if found.runs else None
    folder = run.folder if run else Path("OUT")
    return [*_of_run(found, folder), *_of_looking(found, folder), *_of_checks(found, folder)]


def _command(*words: object) -> str:
    return shlex.join(map(str, words))


def _of_run(found: Found, folder: Path) -> Iterator[Missing]:
    run = found.runs[0] if found.runs else None
    recipe = folder / RECIPE_FILE
    if run is None:
        yield Missing("What was aligned, and how", "no training", "rahf align RECIPE.yaml")
    if run is None or not run.answers:
        what = "Answers before and after, and the audit of their traits"
        yield Missing(
            what, "no evaluation", _command("rahf", "align", recipe, "--stage", "evaluation")
        )
    elif not run.texts:
        why = f"no losses by text; delete {folder / 'evaluation'}, which holds none, before"
        again = _command("rahf", "align", recipe, "--stage", "evaluation")
        yield Missing("The ability loss in the audit", why, again)
    measured = [placebo for placebo in found.placebos if placebo.answers]
    if run is not None and len(measured) < PLACEBOS:
        why = f"{len(measured)} measured; {PLACEBOS} separate chance from effect"
        yield Missing("Placebos", why, _placebo_commands(found, folder))
    if run is None or not last_reading(run.log):
        how = "rahf.DirectionMonitor(trainer, directions, answers) in your training script"
        yield Missing("What the guards saw", "no direction was watched", how)


def _placebo_commands(found: Found, folder: Path) -> str:
    """Return the commands that train a placebo, where there is none, and measure it."""
    unmeasured = [placebo.folder for placebo in found.placebos if not placebo.answers]
    if not unmeasured:
        return _command(
            *("rahf", "features", "diff", "--model", folder, "--dictionary", "DICTIONARY"),
            *("--pairs", "PAIRS", "--placebo", "train", "--seed", len(found.placebos) + 1),
            *("--output", f"{folder}-diff-{len(found.placebos) + 1}"),
        )
    evaluation = found.runs[0].settings.get("evaluation")
    evaluation = evaluation if isinstance(evaluation, dict) else {}
    given = [
        word
        for key in ("judge", "prompts", "unrelated_text", "max_new_tokens")
        if evaluation.get(key) is not None
        for word in (f"--evaluation.{key}", evaluation[key])
    ]
    recipe = unmeasured[0] / RECIPE_FILE
    return _command("rahf", "align", recipe, "--stage", "evaluation", *given)


def _of_looking(found: Found, folder: Path) -> Iterator[Missing]:
    if not found.parts["rahf compare"]:
        recipe = folder / RECIPE_FILE
        yield Missing("Quality beside cost", "no comparison", _command("rahf", "compare", recipe))
    if not found.parts["rahf shift"]:
        command = _command(
            *("rahf", "shift", "--model", folder, "--prompts", "PROMPTS.jsonl"),
            *("--output", f"{folder}-shift"),
        )
        yield Missing("Token shift", "no responses were compared", command)
    diffs = found.parts["rahf features diff"]
    if not diffs:
        command = _command(
            *("rahf", "features", "diff", "--model", folder, "--dictionary", "DICTIONARY"),
            *("--pairs", "PAIRS", "--placebo", "train", "--output", f"{folder}-diff"),
        )
        yield Missing("Features that moved", "no diff", command)
    elif not any("explanation" in row for part in diffs for row in part.figures["features"]):
        why = "the diff has no explanations"
        command = "rahf features diff ... --explanations FOLDER/scores.jsonl"
        yield Missing("Explanations of features", why, command)
    if not found.parts["rahf influence score"]:
        command = _command(
            *("rahf", "influence", "score", "--adapter", folder, "--pairs", "HELD_OUT_PAIRS"),
            *("--output", f"{folder}-influence"),
        )
        yield Missing("Pairs that caused it", "no attribution", command)


def _of_checks(found: Found, folder: Path) -> Iterator[Missing]:
    """Yield what further commands would add, in the order of the page."""
    model, pairs = ("--model", folder), ("--pairs", "HELD_OUT_PAIRS")
    adapter = ("--adapter", folder, *pairs)
    said = ("--responses", "RESPONSES.jsonl", "--judge", "JUDGE", "--output", "judged.json")
    other = (*model, "--pairs", "OTHER_PAIRS", "--output", folder / "preferences.json")
    tasks = (*model, "--tasks", "TASK,TASK", "--output", folder / "tasks.json")
    checked = (*adapter, "--output", f"{folder}-validation")
    cleaned = (*adapter, "--output", f"{folder}-cleaning")
    data = ("PAIRS", "--model", "BASE", "--output", f"{folder}-screen")
    for part, why, command, given in (
        ("Sweep", "no grid of trainings", "sweep", ("RECIPE.yaml", "--alpha", "1,2,4")),
        ("Responses judged", "no file of responses", "evaluate responses", said),
        ("Other preferences", "no pairs besides the asked ones", "evaluate preferences", other),
        ("Tasks", "no tasks", "evaluate tasks", tasks),
        ("Whether retraining agrees", "no retraining", "influence validate", checked),
        ("Without the worst pairs", "no cleaning", "influence clean", cleaned),
        ("Forecast of the data", "no screening", "screen", data),
    ):
        if not found.parts[f"rahf {command}"]:
            yield Missing(part, why, _command("rahf", *command.split(), *given))
