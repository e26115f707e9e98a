"""Options that name a judge."""

import argparse
from typing import TYPE_CHECKING

from rahf.commands.options.models import device, loading, model_options

if TYPE_CHECKING:
    from rahf.judges.by_name import NamedJudge

JUDGES = """\
Judges: lexicon (tone), length, refusal, regex:PATTERN (plain rules);
  reward:NAME (a reward model, or any sequence classifier);
  choice:NAME (a language model here, by the probabilities of its answers);
  api:MODEL (behind an OpenAI-compatible --url; the key in RAHF_API_KEY, or OPENAI_API_KEY)."""


def judge_options(parser: argparse.ArgumentParser) -> None:
    """Add --judge, and what it needs."""
    option = parser.add_argument
    option("--judge", required=True, metavar="JUDGE", help="who judges, see below")
    option("--url", metavar="URL", help="of an api judge, up to and without /chat/completions")
    option("--workers", metavar="N", type=int, default=8, help="requests at once (default: 8)")
    option("--label", metavar="N", type=int, default=0, help="label of a classifier (default: 0)")
    option("--batch_size", metavar="N", type=int, default=8, help="texts at once (default: 8)")
    model_options(parser, named=False)


def named_judge(options: argparse.Namespace) -> "NamedJudge":
    """What the options say of the judge."""
    from rahf.judges.by_name import NamedJudge

    return NamedJudge(
        options.judge,
        device(options),
        options.url,
        options.workers,
        options.label,
        options.batch_size,
        loading(options),
    )
