"""`rahf evaluate tasks`: tasks of the evaluation harness."""

import argparse
from pathlib import Path

from rahf.commands.options.figures import figures_option, print_figures
from rahf.commands.options.models import content, identity, load, model_options


def add_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    model_options(parser)
    option("--tasks", required=True, metavar="A,B", help="names of tasks")
    option("--task_folder", metavar="FOLDER", type=Path, help="task files of your own")
    option(
        "--few_shot", metavar="N", type="count from zero", help="examples in front of a question"
    )
    option("--chat", action="store_true", help="put questions in the chat template")
    option("--limit", metavar="N", type="count", help="the first N questions of each task")
    option(
        "--batch_size", metavar="N", type="count", default=8, help="questions at once (default: 8)"
    )
    figures_option(parser)


def run(options: argparse.Namespace) -> int:
    return print_figures(options, _figures)


def _figures(options: argparse.Namespace):
    """Return figures and table."""
    from rahf.data.chat_format import chat_format
    from rahf.evaluation.tasks import run_tasks
    from rahf.report.judgements import tasks_table

    if options.chat_template and not options.chat:
        raise ValueError("--chat_template is read with --chat only: give both or neither")
    model, tokenizer = load(options)
    if options.chat_template:
        tokenizer.chat_template = chat_format(tokenizer, options.chat_template).template
    figures = run_tasks(
        model,
        tokenizer,
        options.tasks.split(","),
        task_folder=options.task_folder,
        limit=options.limit,
        batch_size=options.batch_size,
        few_shot=options.few_shot,
        chat=options.chat,
        trust_code=options.trust_remote_code,
    )
    made_with = {**identity(options), "made_from": content(options)}
    return {**made_with, "tasks": figures}, tasks_table(figures)
