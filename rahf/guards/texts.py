"""What the texts of a data set show by themselves, beside what hidden states do: length, counted
words, and a classifier of words.

Knows texts; knows no model.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rahf.artifacts import read_lines

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
SIDES = ("positive", "negative")


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return [word.lower().replace("\u2019", "'") for word in WORD.findall(text)]


def word_score(text: str, lists: Mapping[str, Iterable[str]]) -> float:
    """Return the share of words of the positive list minus that of the negative list."""
    said = words_of(text)
    if not said:
        return 0.0
    both = [{word.lower() for word in lists.get(side, ())} for side in SIDES]
    return sum((word in both[0]) - (word in both[1]) for word in said) / len(said)


class WordClassifier:
    """Naive Bayes over words, with a count of 1 added to every word of either side.

    Args:
        positive: texts of the trait.
        negative: texts of its opposite.
    """

    def __init__(self, positive: Sequence[str], negative: Sequence[str]):
        counts = [Counter(w for text in texts for w in words_of(text))
                  for texts in (positive, negative)]  # fmt: skip
        known = set(counts[0]) | set(counts[1])
        sizes = [sum(each.values()) + len(known) for each in counts]
        self._odds = {
            word: math.log((counts[0][word] + 1) / sizes[0])
            - math.log((counts[1][word] + 1) / sizes[1])
            for word in known
        }

    def score(self, text: str) -> float:
        """Return the mean log odds per word; words that are not known count 0."""
        said = words_of(text)
        return sum(self._odds.get(word, 0.0) for word in said) / len(said) if said else 0.0


def classifier_of(folder: Path) -> WordClassifier | None:
    """Return a classifier of the texts that a direction was fitted to; None: they are not there.

    Raises:
        ValueError: the file holds no pairs, or something else.
    """
    path = folder / "pairs.jsonl"
    if not path.is_file():
        return None
    pairs = read_lines(path)
    if not pairs or not all(map(_is_pair, pairs)):
        raise ValueError(
            f"{path} is damaged: each line should hold `chosen` and `rejected`, texts. Fit the "
            "bank again, or delete the file to screen without a classifier of words."
        )
    return WordClassifier(*([pair[side] for pair in pairs] for side in ("chosen", "rejected")))


def _is_pair(given: Any) -> bool:
    return isinstance(given, dict) and all(
        isinstance(given.get(side), str) for side in ("chosen", "rejected")
    )


def are_words(given: Any) -> bool:
    """Return whether a value is lists of words by side, as `word_score` takes them."""
    return isinstance(given, dict) and all(
        side in SIDES and isinstance(listed, list) and all(isinstance(w, str) for w in listed)
        for side, listed in given.items()
    )
