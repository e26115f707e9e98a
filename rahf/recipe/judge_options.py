"""Options that name a judge, in every section of a recipe that has one.

Knows names of judges; knows no model and no file.
"""

from dataclasses import dataclass

from rahf.judges.names import ENCODER, name_problems, url_problems
from rahf.recipe.fields import Count, CountFromZero, option

JUDGE_HELP = (
    "Judge of the answers: lexicon, length, refusal, regex:PATTERN, reward:NAME, references:FILE "
    "(a score); choice:NAME, api:MODEL (whether an answer beats the base's)"
)


@dataclass(frozen=True)
class JudgeOptions:
    """The judge of answers, and what it needs."""

    judge: str | list[str] | None = option(
        "lexicon",
        f"{JUDGE_HELP}; a list: the first fills the table, the others are reported beside it; "
        "null: none.",
    )
    url: str | None = option(
        None, "OpenAI-compatible URL of an api judge, without /chat/completions."
    )
    workers: Count = option(8, "Concurrent requests to an api judge.")
    encoder: str = option(ENCODER, "Encoder model of a references judge: a folder or a Hub id.")
    label: CountFromZero = option(
        0, "Label whose log-odds are the score of a reward judge with several labels."
    )

    @property
    def judges(self) -> list[str]:
        """Return the names of all judges; the first one decides."""
        given = [] if self.judge is None else self.judge
        return [given] if isinstance(given, str) else list(given)

    @property
    def compares(self) -> bool:
        """Return whether a judge chooses between two answers and scores no single one."""
        return any(str(name).partition(":")[0] in ("choice", "api") for name in self.judges)

    def judge_problems(self) -> list[str]:
        """Return what is wrong with the judge's name and its URL."""
        names = self.judges
        if self.judge == []:
            return ["judge: [] names no judge: name one, or set null"]
        unread = [name for name in names if not isinstance(name, str)]
        if unread:
            return [f"judge: {name!r} is not text, which a judge's name is" for name in unread]
        twice = sorted({name for name in names if names.count(name) > 1})
        return [
            *(f"judge: {name!r} is named twice" for name in twice),
            *(f"judge: {line}" for name in names for line in name_problems(name)),
            *(line for name in names for line in url_problems(name, self.url, "url")),
        ]
