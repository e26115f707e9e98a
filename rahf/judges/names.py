"""What the name of a judge means: its kind, and what that kind needs.

Knows names only, so that a recipe is checked without torch; the judge itself is built by
`by_name.py`.
"""

import re
from typing import NamedTuple

import regex

RULES = ("lexicon", "length", "refusal", "regex")
MODELS = ("reward", "choice", "api", "references")
KNOWN_JUDGES = (
    "lexicon, length, refusal, regex:PATTERN, reward:NAME, references:FILE, choice:NAME, api:MODEL"
)
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
"""The encoder of a references judge, unless another is named."""


NEUTRAL_SCORES = {
    "lexicon": (-0.05, 0.05),  # as VADER's authors use it
    "refusal": (0.5, 0.5),
    "regex": (0.5, 0.5),
    "references": (0.0, 0.0),
    "choice": (0.5, 0.5),
    "api": (0.5, 0.5),
}
"""Lowest and highest score that leans to neither side, by kind. A length and a reward have no
neutral score."""


class JudgeName(NamedTuple):
    """`regex:PATTERN`, `api:MODEL`, ... in its parts."""

    kind: str  # one of RULES or MODELS
    of: str  # pattern, file or model; "" for a rule that needs none

    @property
    def is_rule(self) -> bool:
        """Return whether a verdict costs nothing, so that it need not be kept."""
        return self.kind in RULES


def parse_judge(name: str) -> JudgeName:
    """Return the parts of a name.

    Raises:
        ValueError: it names no judge.
    """
    problems = name_problems(name)
    if problems:
        raise ValueError(f"judge {problems[0]}")
    kind, _, of = name.partition(":")
    return JudgeName(kind, of)


def name_problems(name: str) -> list[str]:
    """Return why a name is that of no judge."""
    kind, _, of = name.partition(":")
    if kind in MODELS and not of:
        needed = "a file: references:FILE" if kind == "references" else f"a model: {kind}:NAME"
        return [f"{name!r} needs {needed}"]
    if kind == "regex" and of:
        try:
            regex.compile(of, regex.IGNORECASE)
        except (regex.error, RecursionError, OverflowError) as error:
            return [f"{name!r}: no regular expression ({error})"]
    elif kind not in MODELS and (name not in RULES or name == "regex"):
        return [f"{name!r} is not one of {KNOWN_JUDGES}"]
    return []


def url_problems(name: str, url: str | None, key: str) -> list[str]:
    """Return what is wrong with the URL of a judge; `key` is the key or option that holds it."""
    example = "for instance http://localhost:8000/v1"
    if name.partition(":")[0] != "api":
        return []
    if not url:
        return [f"judge {name!r} needs {key}, {example}"]
    if re.search(
        r"//[^/]*@|[?#]", url
    ):  # not shown: a recipe and an output folder keep a URL as it is
        return [
            f"{key} holds a user, a password or parameters (@, ? or #), which files would keep: "
            f"give the address only, {example}, and the key in RAHF_API_KEY"
        ]
    if not url.startswith(("http://", "https://")):
        return [f"{key} {url!r} does not begin with http:// or https://, {example}"]
    return []
