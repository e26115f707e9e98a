"""Options that name a judge, and the judge they name."""

import argparse
import os
from typing import TYPE_CHECKING

from rahf.commands.models import device, identity, load, model_options

if TYPE_CHECKING:
    from rahf.evaluation.judges import Judge

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


def comparing_judge(options: argparse.Namespace) -> "Judge":
    """The judge that --judge names, as one that can tell which of two responses is better."""
    from rahf.evaluation import questions
    from rahf.evaluation.model_judges import Choices, better_choice_judge

    kind, name = _kind(options)
    if kind == "choice":
        choices = Choices(*load(options, name), options.batch_size)
        return better_choice_judge(choices, _id(options, name))
    if kind == "api":

        def question(messages, first: str, second: str) -> str:
            return questions.better_question(messages, first, second) + questions.BETTER_AS_JSON

        return _api_judge(options, name, 2, question, questions.read_better)
    if kind == "reward":
        return _reward_judge(options, name)
    from rahf.evaluation.rules import rule

    return rule(options.judge)


def aspects_judge(options: argparse.Namespace) -> "Judge":
    """The judge that --judge names, as one that marks the six aspects.

    Raises:
        ValueError: it has no words for aspects.
    """
    from rahf.evaluation import questions
    from rahf.evaluation.model_judges import Choices, aspects_choice_judge

    kind, name = _kind(options)
    if kind == "choice":
        choices = Choices(*load(options, name), options.batch_size)
        return aspects_choice_judge(choices, _id(options, name))
    if kind == "api":

        def question(messages, response: str) -> str:
            return questions.aspects_as_json(questions.aspects_question(messages, response))

        return _api_judge(options, name, 1, question, questions.read_aspects)
    raise ValueError(
        f"judge {options.judge!r} gives one score; aspects are marked by choice:NAME or api:MODEL. "
        "Leave --aspects away for its score."
    )


def scoring_judge(options: argparse.Namespace) -> "Judge":
    """The judge that --judge names, as one that scores one response.

    Raises:
        ValueError: it can only compare, or mark aspects.
    """
    if _kind(options)[0] in ("choice", "api"):
        raise ValueError(
            f"judge {options.judge!r} marks aspects or compares: give --aspects, or --against with "
            "other responses."
        )
    return comparing_judge(options)


def _kind(options: argparse.Namespace) -> tuple[str, str]:
    kind, _, name = options.judge.partition(":")
    if kind in ("reward", "choice", "api") and not name:
        raise ValueError(f"judge {kind!r} needs a model: {kind}:NAME")
    return kind, name


def _id(options: argparse.Namespace, name: str) -> str:
    found = identity(options, name)
    return " ".join([found["model"], found["dtype"], *found["weights"]])


def _reward_judge(options: argparse.Namespace, name: str) -> "Judge":
    from rahf.adapters import load_classifier, load_tokenizer_of
    from rahf.evaluation.model_judges import RewardJudge

    loading = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    model = load_classifier(name, loading, device(options))
    tokenizer = load_tokenizer_of(name, trust_remote_code=options.trust_remote_code)
    return RewardJudge(model, tokenizer, _id(options, name), options.label, options.batch_size)


def _api_judge(options: argparse.Namespace, name: str, responses: int, question, parse) -> "Judge":
    from rahf.evaluation.api_judge import Api, ApiJudge

    if not options.url:
        raise ValueError(
            f"judge {options.judge!r} needs --url, for instance http://localhost:8000/v1"
        )
    key = os.environ.get("RAHF_API_KEY") or os.environ.get("OPENAI_API_KEY")
    return ApiJudge(Api(options.url, name, key), responses, question, parse, options.workers)
