"""Judges of explanations: does an explanation fit a text, or the marked tokens of a text?

The rule reads the claims of the statistics explainer and checks them token by token, without a
model. Language models are those of `judges`: one local, by its probabilities of yes and no, and one
behind any client. Knows texts of tokens; knows no activations.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from rahf.interpret.explanations.claims import read_claim
from rahf.judges.api import ApiJudge
from rahf.judges.by_name import NamedJudge, api_judge, choice_judge
from rahf.judges.clients import Client
from rahf.judges.judge import Judge, Value, Verdict
from rahf.judges.local_models import ChoiceJudge, Choices
from rahf.judges.names import parse_judge

YES_NO = ("Yes", "No")

ANSWER_TOKENS = 2
"""Tokens of a yes or no, about."""


class Asked(NamedTuple):
    """An explanation, and what it may fit."""

    explanation: str
    text: str  # with marks around the marked tokens
    tokens: Sequence[str]
    marked: Sequence[int] | None = None  # places of the marked tokens; None: the text is asked of


class FitJudge(Protocol):
    """Gives 1 where an explanation fits, 0 where it does not, or how likely it fits."""

    id: str

    def read(self, asked: Asked) -> str: ...

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]: ...


class RuleJudge:
    """Checks the claims of the statistics explainer; other sentences have no verdict."""

    id, responses = "rule", 1

    def read(self, asked: Asked) -> str:
        marked = None if asked.marked is None else list(asked.marked)
        return json.dumps([asked.explanation, list(asked.tokens), marked], ensure_ascii=False)

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        return (Verdict(self._fits(*json.loads(text))) for text in read)

    def _fits(self, explanation: str, tokens: list[str], marked: list[int] | None) -> float | None:
        """Return whether any token fits, or the share of the marked tokens that do."""
        claim = read_claim(explanation)
        if claim is None:
            return None
        holds = claim.holds(tokens)
        if marked is None:
            return float(any(holds))
        return sum(holds[place] for place in marked) / len(marked)


def fit_question(asked: Asked) -> str:
    """Return the question to a language model."""
    about = (
        "Does the explanation describe this text or any part of it?"
        if asked.marked is None
        else "Does the explanation describe the tokens between « and » where they are in the text?"
    )
    return (
        "A part of a language model is active in some texts. This is an explanation of when it is "
        f"active:\n{asked.explanation}\n\n[Text]\n{asked.text}\n[End of the text]\n\n"
        f"{about} Reply with one word, Yes or No."
    )


def read_yes(said: str) -> float | None:
    """Return 1 for yes, 0 for no, None where it is neither."""
    found = re.match(r"\W*(yes|no)\b", said.strip(), re.IGNORECASE)
    return None if found is None else float(found[1].lower() == "yes")


def client_judge(client: Client, workers: int = 8) -> FitJudge:
    """Return the judge that asks a client, at most `workers` questions at once."""
    return ApiJudge(client, 1, fit_question, read_yes, workers)


def fit_judge(named: NamedJudge) -> FitJudge:
    """Return the judge of a name: rule, choice:NAME or api:MODEL.

    Raises:
        ValueError: no such judge; an api without a URL.
    """
    if named.name == "rule":
        return RuleJudge()
    kind = parse_judge(named.name).kind
    if kind == "choice":
        return choice_judge(named, 1, fit_question, _by_choice)
    if kind == "api":
        return api_judge(named, 1, fit_question, read_yes)
    raise ValueError(
        f"judge {named.name!r} cannot read explanations: give rule, choice:NAME or api:MODEL."
    )


def _by_choice(choices: Choices, id: str) -> Judge:
    def weigh(read: Sequence[str]) -> Iterator[Value]:
        return (yes for yes, _ in choices.probabilities(read, YES_NO))

    return ChoiceJudge(id, 1, fit_question, weigh, choices.length)
