"""Options that name a judge, in every section of a recipe that has one.

Knows names of judges; knows no model and no file.
"""

from dataclasses import dataclass

from rahf.judges.names import name_problems, url_problems
from rahf.recipe.fields import Count, CountFromZero, option

JUDGE_HELP = (
    "Judge of the answers: lexicon, length, refusal, regex:PATTERN, reward:NAME (a score); "
    "choice:NAME, api:MODEL (whether an answer beats the base's)"
)


@dataclass(frozen=True)
class JudgeOptions:
    """The judge of answers, and what it needs."""

    judge: str | None = option("lexicon", f"{JUDGE_HELP}; null: none.")
    url: str | None = option(
        None, "Of an api judge: an OpenAI-compatible URL, up to and without /chat/completions."
    )
    workers: Count = option(8, "Requests at once to an api judge.")
    label: CountFromZero = option(0, "Label whose log-odds a reward judge with several gives.")

    @property
    def compares(self) -> bool:
        """Return whether the judge prefers one of two answers, and scores none by itself."""
        return str(self.judge).partition(":")[0] in ("choice", "api")

    def judge_problems(self) -> list[str]:
        """Return what is wrong with the judge's name and its URL."""
        if self.judge is None:
            return []
        return [
            *(f"judge: {line}" for line in name_problems(self.judge)),
            *url_problems(self.judge, self.url, "url"),
        ]
