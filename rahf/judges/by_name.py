"""A judge by its name: as one that compares two responses, scores one, or marks its six aspects.

A model is loaded when its judge has to read something new, and freed afterwards, since other models
are trained and answer meanwhile. Knows loaders; knows no recipe.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig

from rahf.judges import questions
from rahf.judges.api import Api, ApiJudge
from rahf.judges.judge import Judge, Value, Verdict, Verdicts, id_of_model
from rahf.judges.local_models import (
    DIGITS,
    LETTERS,
    Choices,
    RewardJudge,
    aspects_choice_judge,
    better_choice_judge,
    first_tokens,
    label_id,
    response_reader,
)
from rahf.judges.names import ENCODER, NEUTRAL_SCORES, parse_judge, url_problems
from rahf.judges.reference_file import read_references
from rahf.judges.references import ReferencesJudge, load_encoder
from rahf.judges.rules import rule
from rahf.models.adapters import base_of, load_model, load_tokenizer_of
from rahf.models.classifiers import label_count, load_classifier

VERDICTS_FILE = "verdicts.jsonl"


@dataclass(frozen=True)
class NamedJudge:
    """A name, and what else the judge behind it may need."""

    name: str
    device: torch.device
    url: str | None = None  # of an api
    workers: int = 8  # requests at once
    label: int = 0  # of a classifier
    batch_size: int = 8  # texts at once
    encoder: str = ENCODER  # of a references judge
    loading: Mapping[str, Any] = field(
        default_factory=lambda: {"dtype": "auto", "trust_remote_code": False}
    )  # options of from_pretrained

    @property
    def neutral(self) -> tuple[float, float] | None:
        """Return the lowest and highest score that leans to neither side; None: there is none."""
        return NEUTRAL_SCORES.get(parse_judge(self.name).kind)

    @property
    def has_side(self) -> bool:
        """Return whether a higher value is wanted, whatever the pairs lean to."""
        return parse_judge(self.name).kind == "references"

    @property
    def gives_shares(self) -> bool:
        """Return whether a score is a yes or a no, so that the mean over responses is a share."""
        return self.neutral == (0.5, 0.5)

    def verdicts_in(self, folder: Path) -> Verdicts:
        """Return the verdicts that are kept in `folder`; those of a rule are not kept on disk."""
        return Verdicts(None if parse_judge(self.name).is_rule else folder / VERDICTS_FILE)


def sources_of(name: str, encoder: str) -> list[str]:
    """Return what a judge reads: its file or model, the base of an adapter, an encoder."""
    kind, of = parse_judge(name)
    read = {"reward": [of], "choice": [of], "references": [of, encoder]}.get(kind, [])
    adapters = [path for path in read if Path(path, "adapter_config.json").is_file()]
    bases = [PeftConfig.from_pretrained(path).base_model_name_or_path for path in adapters]
    return [*read, *filter(None, bases)]


@dataclass(frozen=True)
class LoadedWhenAsked:
    """A judge whose model is loaded each time that it has to give verdicts."""

    id: str
    responses: int
    read: Callable[..., str]
    build: Callable[[], Judge]

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        yield from self.build().verdicts(read)


def comparing_judge(named: NamedJudge) -> Judge:
    """Return the judge that decides which of two responses is better: a chooser, or a scorer.

    Raises:
        ValueError: no such judge; no such label of a classifier; an api without a URL.
    """
    kind = parse_judge(named.name).kind
    if kind == "choice":
        return choice_judge(named, 2, questions.better_as_letter, better_choice_judge)
    if kind == "api":
        return api_judge(named, 2, questions.better_as_json, questions.read_better)
    if kind == "references":
        return _references(named)
    return _reward(named) if kind == "reward" else rule(named.name)


def aspects_judge(named: NamedJudge) -> Judge:
    """Return the judge that marks the six aspects.

    Raises:
        ValueError: it has no words for aspects; no such judge; an api without a URL.
    """
    kind = parse_judge(named.name).kind
    if kind == "choice":
        return choice_judge(named, 1, questions.aspects_question, aspects_choice_judge)
    if kind == "api":
        return api_judge(named, 1, questions.aspects_as_json, questions.read_aspects)
    raise ValueError(
        f"judge {named.name!r} gives one score; aspects are marked by choice:NAME or api:MODEL. "
        "Omit --aspects for its score."
    )


def scoring_judge(named: NamedJudge) -> Judge:
    """Return the judge that scores one response.

    Raises:
        ValueError: it can only compare, or mark aspects; no such judge.
    """
    if parse_judge(named.name).kind in ("choice", "api"):
        raise ValueError(
            f"judge {named.name!r} marks aspects or compares: give --aspects, or --against with "
            "other responses."
        )
    return comparing_judge(named)


def choice_judge(
    named: NamedJudge,
    responses: int,
    question: Callable[..., str],
    judge: Callable[[Choices, str], Judge],
) -> Judge:
    """Return the judge that a local language model is by `judge`, loaded when it has to read."""
    name = parse_judge(named.name).of
    # Now, so that a wrong name or a tokenizer that cannot choose is reported at once.
    tokenizer = _tokenizer(named)
    try:
        first_tokens(tokenizer, LETTERS if responses == 2 else DIGITS)
    except ValueError as error:
        raise ValueError(f"judge {named.name!r}: {error}") from error

    def build() -> Judge:
        model = load_model(name, named.loading, named.device)
        return judge(Choices(model, tokenizer, named.batch_size), _id(named))

    return LoadedWhenAsked(_id(named), responses, question, build)


def _reward(named: NamedJudge) -> Judge:
    name, tokenizer = parse_judge(named.name).of, _tokenizer(named)
    labels = label_count(name, trust_remote_code=named.loading["trust_remote_code"])

    def build() -> Judge:
        model = load_classifier(name, named.loading, named.device)
        return RewardJudge(model, tokenizer, _id(named), named.label, named.batch_size)

    judge_id = label_id(_id(named), labels, named.label)
    return LoadedWhenAsked(judge_id, 1, response_reader(tokenizer), build)


def _references(named: NamedJudge) -> Judge:
    path, name = Path(parse_judge(named.name).of), named.encoder
    judge_id = id_of_model(name, named.loading["dtype"])
    load = partial(load_encoder, name, named.loading, named.device)
    return ReferencesJudge(judge_id, read_references(path), load, str(path))


def api_judge(
    named: NamedJudge,
    responses: int,
    question: Callable[..., str],
    parse: Callable[[str], Value],
) -> Judge:
    """Return the judge behind the URL of an api.

    Raises:
        ValueError: the URL is missing or cannot be used; a key that no header can carry.
    """
    for problem in url_problems(named.name, named.url, "--url"):
        raise ValueError(problem)
    key = os.environ.get("RAHF_API_KEY") or os.environ.get("OPENAI_API_KEY")
    api = Api(named.url, parse_judge(named.name).of, key)
    return ApiJudge(api, responses, question, parse, named.workers)


def _tokenizer(named: NamedJudge):
    name, code = parse_judge(named.name).of, named.loading["trust_remote_code"]
    return load_tokenizer_of(name, trust_remote_code=code)


def _id(named: NamedJudge) -> str:
    name = parse_judge(named.name).of
    return id_of_model(name, named.loading["dtype"], base_of(name))
