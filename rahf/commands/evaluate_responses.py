"""`rahf evaluate responses`: responses scored by a judge, or those of two files compared."""

import argparse
from pathlib import Path

from rahf.commands.options.figures import figures_option, print_figures
from rahf.commands.options.models import device, loading, model_options
from rahf.judges.names import ENCODER

JUDGES = """\
Judges: lexicon (tone), length, refusal, regex:PATTERN (plain rules);
  reward:NAME (a reward model, or any sequence classifier);
  references:FILE (nearness to right against wrong reference answers, by an --encoder);
  choice:NAME (a language model here, by the probabilities of its answers);
  api:MODEL (behind an OpenAI-compatible --url; the key in RAHF_API_KEY, or OPENAI_API_KEY)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = JUDGES
    option = parser.add_argument
    option("--responses", required=True, metavar="FILE", type=Path, help="responses to judge")
    option("--against", metavar="FILE", type=Path, help="responses of another to the same prompts")
    option("--aspects", action="store_true", help="six marks from 1 to 5 in place of one score")
    _judge_options(parser)
    option("--verdicts", metavar="FILE", type=Path, help="verdicts, kept and reused")
    figures_option(parser)


def _judge_options(parser: argparse.ArgumentParser) -> None:
    """Add --judge, and what it needs."""
    option = parser.add_argument
    option("--judge", required=True, metavar="JUDGE", help="the judge, see below")
    option("--url", metavar="URL", help="URL of an api judge, without /chat/completions")
    option("--workers", metavar="N", type="count", default=8, help="requests at once (default: 8)")
    option(
        "--label",
        metavar="N",
        type="count from zero",
        default=0,
        help="label of a classifier (default: 0)",
    )
    option(
        "--encoder",
        metavar="NAME",
        default=ENCODER,
        help="encoder of a references judge (default: %(default)s)",
    )
    option("--batch_size", metavar="N", type="count", default=8, help="texts at once (default: 8)")
    model_options(parser, named=False)


def run(options: argparse.Namespace) -> int:
    return print_figures(options, _figures)


def _figures(options: argparse.Namespace):
    """Return figures and table."""
    from rahf.data.prompts import read_responses
    from rahf.judges.judge import Verdicts

    if options.against is not None and options.aspects:
        raise ValueError("--aspects scores one file; omit --against or --aspects")
    responses, verdicts = read_responses(options.responses), Verdicts(options.verdicts)
    if options.against is None:
        return _scores(options, responses, verdicts)
    return _wins(options, responses, read_responses(options.against), verdicts)


def _scores(options: argparse.Namespace, responses, verdicts):
    from rahf.evaluation.scores import aspect_figures, score_figures
    from rahf.judges.by_name import aspects_judge, scoring_judge
    from rahf.report.judgements import aspects_table, score_table

    named = _named_judge(options)
    judge = (aspects_judge if options.aspects else scoring_judge)(named)
    read = [judge.read(response.messages, response.text) for response in responses]
    values = [verdict.value for verdict in verdicts.ask(judge, read)]
    figures = {"judge": judge.id, "responses": len(responses)}
    if options.aspects:
        aspects = aspect_figures(values)
        return {**figures, "aspects": aspects}, aspects_table(aspects)
    scores = score_figures(values, share=named.gives_shares)
    figures |= scores
    return figures, score_table(figures)


def _wins(options: argparse.Namespace, first, second, verdicts):
    from rahf.evaluation.wins import contests_of, decide, win_rates
    from rahf.judges.by_name import comparing_judge
    from rahf.report.judgements import wins_table

    contests = contests_of(first, second, (str(options.responses), str(options.against)))
    judge = comparing_judge(_named_judge(options))
    outcomes = decide(judge, contests, verdicts)
    figures = win_rates(contests, outcomes, chooser=judge.responses == 2)
    names = [options.responses.stem, options.against.stem]
    figures = {"judge": judge.id, "first": names[0], "second": names[1], **figures}
    return figures, wins_table(figures)


def _named_judge(options: argparse.Namespace):
    """Return the judge that the options name, and what it needs."""
    from rahf.judges.by_name import NamedJudge

    return NamedJudge(
        options.judge,
        device(options),
        options.url,
        options.workers,
        options.label,
        options.batch_size,
        options.encoder,
        loading(options),
    )
