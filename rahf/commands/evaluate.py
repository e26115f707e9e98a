"""`rahf evaluate`: preferences of a model, judged responses, tasks of the evaluation harness."""

import argparse
from pathlib import Path

from rahf.commands.options.judges import JUDGES, judge_options, named_judge
from rahf.commands.options.models import identity, load, model_options
from rahf.commands.options.parsers import plain_command


def add(commands) -> None:
    kinds = commands.add_parser(
        "evaluate", help="measure a model's preferences, judge responses, run tasks"
    ).add_subparsers(metavar="WHAT", required=True)
    _preferences(kinds)
    _responses(kinds)
    _tasks(kinds)


def _preferences(kinds) -> None:
    summary = "measure whether a model finds chosen responses likelier than rejected ones"
    parser = plain_command(kinds, "preferences", summary, evaluate_preferences)
    option = parser.add_argument
    model_options(parser)
    option("--pairs", required=True, metavar="NAME", help="pairs: a file, a folder or a Hub id")
    option("--split", metavar="NAME", default="train", help="of the pairs (default: train)")
    option(
        "--reference",
        metavar="NAME",
        help="model that DPO's implicit reward is measured against (default: adapter off)",
    )
    option(
        "--max_length", metavar="N", type=int, default=2048, help="tokens of a pair's side (2048)"
    )
    option("--limit", metavar="N", type=int, help="the first N pairs")
    option("--batch_size", metavar="N", type=int, default=8, help="pairs at once (default: 8)")
    option("--output", metavar="FILE", type=Path, help="JSON file for the figures")


def _responses(kinds) -> None:
    summary = "let a judge score responses, or decide between those of two files"
    parser = plain_command(kinds, "responses", summary, evaluate_responses, JUDGES)
    option = parser.add_argument
    option("--responses", required=True, metavar="FILE", type=Path, help="responses to judge")
    option("--against", metavar="FILE", type=Path, help="responses of another to the same prompts")
    option("--aspects", action="store_true", help="six marks from 1 to 5 in place of one score")
    judge_options(parser)
    option("--verdicts", metavar="FILE", type=Path, help="verdicts, kept and not asked for again")
    option("--output", metavar="FILE", type=Path, help="JSON file for the figures")


def _tasks(kinds) -> None:
    summary = "run tasks of lm-evaluation-harness (pip install 'rahf[eval]')"
    parser = plain_command(kinds, "tasks", summary, evaluate_tasks)
    option = parser.add_argument
    model_options(parser)
    option("--tasks", required=True, metavar="A,B", help="names of tasks")
    option("--task_folder", metavar="FOLDER", type=Path, help="task files of your own")
    option("--few_shot", metavar="N", type=int, help="examples in front of a question")
    option("--chat", action="store_true", help="put questions in the chat template")
    option("--limit", metavar="N", type=int, help="the first N questions of each task")
    option("--batch_size", metavar="N", type=int, default=8, help="questions at once (default: 8)")
    option("--output", metavar="FILE", type=Path, help="JSON file for the figures")


def evaluate_preferences(options: argparse.Namespace) -> int:
    from peft import PeftModel

    from rahf.data.sources import load_pairs
    from rahf.data.tokenization import tokenize_pairs
    from rahf.evaluation.preferences import pair_sizes, preference_figures
    from rahf.generation.answers import answering, pad_id
    from rahf.models.adapters import frozen_pass
    from rahf.models.likelihood import pair_likelihoods
    from rahf.models.packing import use_packed_attention
    from rahf.report.judgements import preferences_table

    pairs = load_pairs(options.pairs, split=options.split)
    pairs = pairs.select(range(min(len(pairs), options.limit or len(pairs))))
    model, tokenizer = load(options)
    rows, _ = tokenize_pairs(
        pairs, tokenizer, max_length=options.max_length, chat_template=options.chat_template
    )
    asked = (rows, pad_id(tokenizer), options.batch_size)
    use_packed_attention(model)
    reference = None
    with answering(model):
        measured = pair_likelihoods(model, *asked)
        if options.reference is not None:
            other = load(options, options.reference).model
            use_packed_attention(other)
            reference = pair_likelihoods(other, *asked)
        elif isinstance(model, PeftModel):
            with frozen_pass(model, None):
                reference = pair_likelihoods(model, *asked)
    figures = preference_figures(measured, pair_sizes(rows, tokenizer), reference)
    figures["dropped_pairs"] = len(pairs) - len(rows)
    return _tell(options, {**identity(options), **figures}, preferences_table(figures))


def evaluate_responses(options: argparse.Namespace) -> int:
    from rahf.data.prompts import read_responses
    from rahf.judges.judge import Verdicts

    if options.against is not None and options.aspects:
        raise ValueError("--aspects scores one file; leave --against or --aspects away")
    responses, verdicts = read_responses(options.responses), Verdicts(options.verdicts)
    if options.against is None:
        figures, table = _scores(options, responses, verdicts)
    else:
        figures, table = _wins(options, responses, read_responses(options.against), verdicts)
    return _tell(options, figures, table)


def _scores(options: argparse.Namespace, responses, verdicts):
    from rahf.evaluation.scores import aspect_figures, score_figures
    from rahf.judges.by_name import aspects_judge, scoring_judge
    from rahf.report.judgements import aspects_table, score_table

    judge = (aspects_judge if options.aspects else scoring_judge)(named_judge(options))
    read = [judge.read(response.messages, response.text) for response in responses]
    values = [verdict.value for verdict in verdicts.ask(judge, read)]
    figures = {"judge": judge.id, "responses": len(responses)}
    if options.aspects:
        aspects = aspect_figures(values)
        return {**figures, "aspects": aspects}, aspects_table(aspects)
    scores = score_figures(values)
    return {**figures, **scores}, score_table(scores)


def _wins(options: argparse.Namespace, first, second, verdicts):
    from rahf.evaluation.wins import contests_of, decide, win_rates
    from rahf.judges.by_name import comparing_judge
    from rahf.report.judgements import wins_table

    contests = contests_of(first, second)
    judge = comparing_judge(named_judge(options))
    outcomes = decide(judge, contests, verdicts)
    figures = win_rates(contests, outcomes, chooser=judge.responses == 2)
    names = [options.responses.stem, options.against.stem]
    figures = {"judge": judge.id, "first": names[0], "second": names[1], **figures}
    return figures, wins_table(figures)


def evaluate_tasks(options: argparse.Namespace) -> int:
    from rahf.data.chat_format import chat_format
    from rahf.evaluation.tasks import run_tasks
    from rahf.report.judgements import tasks_table

    if options.chat_template and not options.chat:
        raise ValueError("--chat_template is read with --chat alone: give both or neither")
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
    )
    return _tell(options, {**identity(options), "tasks": figures}, tasks_table(figures))


def _tell(options: argparse.Namespace, figures: dict, table: str) -> int:
    if options.output is not None:
        from rahf.artifacts import write_json

        write_json(options.output, figures)
    print(table)
    return 0
