"""A judge that knows nothing of the training: the tone of a text by word list (VADER, Hutto &
Gilbert 2014).
"""

from collections.abc import Callable, Sequence

Judge = Callable[[Sequence[str]], list[float]]
"""Texts to scores; the sign says which way a text leans, `NEUTRAL` how small a lean says
nothing.
"""

NEUTRAL = 0.05
"""Compound scores within +-0.05 are neutral, as VADER's authors use it."""


def lexicon_tone() -> Judge:
    """A judge of tone from -1 (negative) to 1 (positive): VADER's compound score.

    Raises:
        ValueError: the extra with the lexicon is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError:
        raise ValueError(
            "judge: lexicon needs vaderSentiment, which is not installed: "
            "pip install 'rahf[judges]', or set evaluation.judge to null."
        ) from None
    analyzer = SentimentIntensityAnalyzer()
    return lambda texts: [analyzer.polarity_scores(text)["compound"] for text in texts]


def wanted_sign(judge: Judge, chosen: Sequence[str], rejected: Sequence[str]) -> int:
    """The side of the judge's scale that the chosen responses lean to: 1 or -1."""
    return 1 if sum(judge(chosen)) >= sum(judge(rejected)) else -1


def shows(scores: Sequence[float], sign: int) -> list[bool]:
    """Which texts show the wanted behaviour: those that lean to its side beyond the neutral
    band.
    """
    return [sign * score > NEUTRAL for score in scores]
