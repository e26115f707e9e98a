"""`rahf influence score`: which training pairs caused what an adapter does."""

import argparse
from pathlib import Path

from rahf.commands.options.influence import (
    asked_of,
    held_training,
    influence_options,
    question_options,
    settings_of,
)

EPILOG = """\
Each record is one query: with --responses the log-probability of each response of a file (as `rahf
generate` writes it), with --pairs the margin of each held-out pair, with --direction the projection
of the responses' hidden states. FOLDER gets queries.jsonl (top pairs of each query), summary.json,
scores.safetensors (every pair), influence.png and index.html (tokens in colour)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    influence_options(parser)
    question_options(parser)
    option("--output", required=True, metavar="FOLDER", type=Path, help="folder of the results")
    option(
        "--top",
        metavar="N",
        type="count",
        default=10,
        help="pairs at each end of a query's list (default: 10)",
    )
    option(
        "--explained",
        metavar="N",
        type="count from zero",
        default=3,
        help="how many of these are shown token by token (default: 3)",
    )
    option(
        "--validated_by",
        metavar="FOLDER",
        type=Path,
        help="adapter trained on validation pairs, for the rival LossDiff",
    )


def run(options: argparse.Namespace) -> int:
    from accelerate import PartialState

    from rahf.influence.run import POLICY_STAGE, fit_stage

    settings = settings_of(options)
    with held_training(options, options.output) as training:
        _score(options, settings, fit_stage(training, POLICY_STAGE, settings))
        if PartialState().is_main_process:
            print(_report(options))
    return 0


def _score(options: argparse.Namespace, settings, fitted) -> None:
    """Evaluate the queries, score, and write every file of the results."""
    from rahf.influence.files import rivals_of, write_results
    from rahf.influence.queries import ask
    from rahf.influence.run import score_all
    from rahf.models.adapters import pad_id

    questions, subject = asked_of(options, fitted.subject), fitted.subject
    how = (pad_id(subject.tokenizer), options.batch_size, questions.values)
    asked = ask(subject.objective.model, fitted.parts, questions.queries, *how)
    influence = score_all(fitted, asked, settings)
    rivals = rivals_of(fitted, influence, questions.queries, settings, options.validated_by)
    write_results(
        options.output,
        fitted,
        influence,
        asked,
        rivals,
        settings,
        unit=questions.unit,
        top=options.top,
        explained=min(options.explained, options.top),
    )


def _report(options: argparse.Namespace) -> str:
    """Draw the chart and the page from the files; return the tables."""
    from rahf.artifacts import read_lines, read_object, write_text
    from rahf.influence.files import QUERIES_FILE, SUMMARY_FILE
    from rahf.report.influence import (
        influence_chart,
        influence_page,
        influence_table,
        summary_text,
    )

    folder, chart = options.output, options.output / "influence.png"
    summary, records = read_object(folder / SUMMARY_FILE), read_lines(folder / QUERIES_FILE)
    influence_chart(summary, records, chart)
    title = f"Which pairs caused it: {options.adapter}"
    page = influence_page(title, summary, records, chart, options.explained)
    write_text(folder / "index.html", page)
    first = f"{records[0]['query']}\n\n{influence_table(records[0], summary['unit'], 3)}"
    return f"{first}\n\n{summary_text(summary, records)}\n\npage: {folder / 'index.html'}"
