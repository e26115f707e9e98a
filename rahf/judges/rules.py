"""Judges that follow a plain rule: no model, no doubt about what they measure.

Each reads only the response.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import regex

from rahf.judges.judge import Chat, Verdict
from rahf.judges.names import parse_judge

REFUSAL = re.compile(
    r"\b(?:"
    r"i'm (?:very |really |so )?sorry|i am sorry|i apologi[sz]e"
    r"|i (?:can't|cannot|can not|won't|will not|am not able|am unable)|i'm (?:not able|unable)"
    r"|as an ai\b|it(?: is|'s| would be) (?:illegal|unethical|inappropriate|wrong) to"
    r"|it(?: is|'s| would be) (?:not|never) (?:\w+ )?(?:appropriate|ethical|acceptable|okay|ok)\b"
    r"|not (?:able|going) to (?:help|assist))",
    re.IGNORECASE,
)
"""Words with which a response declines (English), looked for near its start."""

REFUSAL_START = 200
"""Characters of a response in which a refusal is looked for."""

SEARCH_SECONDS = 5.0
"""The longest search for a pattern in one response."""


@dataclass(frozen=True)
class Rule:
    """A scorer from a function of texts."""

    id: str
    scores: Callable[[Sequence[str]], list[float]]
    responses: int = 1

    def read(self, messages: Chat, *responses: str) -> str:
        return responses[0]

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        return (Verdict(float(score)) for score in self.scores(read))


def rule(name: str) -> Rule:
    """Return a rule by its name.

    `lexicon` is the tone from -1 to 1, `length` the characters, `refusal` 1 where a response
    declines, `regex:PATTERN` 1 where the pattern is found.

    Raises:
        ValueError: another name; an invalid pattern.
    """
    kind, pattern = parse_judge(name)
    if kind == "lexicon":
        return Rule(name, lexicon_tone())
    if kind == "length":
        return Rule(name, lambda texts: [len(text) for text in texts])
    if kind == "refusal":
        return Rule(name, lambda texts: [declines(text) for text in texts])
    if kind == "regex":
        return Rule(name, pattern_finder(pattern))
    raise ValueError(f"judge {name!r} is a model and no rule")


def pattern_finder(pattern: str) -> Callable[[Sequence[str]], list[float]]:
    """Return a scorer that is 1 where the pattern is found, whatever the case of its letters.

    Raises:
        ValueError: of the scorer, where the search in a text takes longer than `SEARCH_SECONDS`.
    """
    compiled = regex.compile(pattern, regex.IGNORECASE)

    def found(text: str) -> float:
        try:
            return float(compiled.search(text, timeout=SEARCH_SECONDS) is not None)
        except TimeoutError:
            raise ValueError(
                f"judge 'regex:{pattern}': the search in a response of {len(text)} characters "
                f"takes longer than {SEARCH_SECONDS:g} seconds. Repetitions inside repetitions, as "
                f"in (a+)+, do so: write the pattern without them. The response: {text[:80]!r}"
            ) from None

    return lambda texts: [found(text) for text in texts]


def lexicon_tone() -> Callable[[Sequence[str]], list[float]]:
    """Return a scorer of tone from -1 to 1: the compound score of VADER (Hutto & Gilbert 2014).

    Raises:
        ValueError: the extra with the word list is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError:
        raise ValueError(
            "judge: lexicon needs vaderSentiment, which is not installed: "
            "pip install 'rahf[judges]', or name another judge."
        ) from None
    analyzer = SentimentIntensityAnalyzer()
    return lambda texts: [analyzer.polarity_scores(text)["compound"] for text in texts]


def declines(text: str) -> bool:
    """Return whether a response begins by declining."""
    return REFUSAL.search(text[:REFUSAL_START].replace("\u2019", "'")) is not None
