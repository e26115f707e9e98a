"""What language models cost: questions, tokens read and written, and the price of both.

Knows numbers and lengths of texts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

CHARACTERS = 4
"""Of a token, about, where no tokenizer has counted."""


@dataclass
class Cost:
    """Questions to a language model."""

    questions: int = 0
    read: int = 0  # tokens
    written: int = 0  # tokens

    def add(self, tokens: tuple[int, int], questions: int = 1) -> None:
        """Add questions of so many tokens, read and written, each."""
        self.questions += questions
        self.read += questions * tokens[0]
        self.written += questions * tokens[1]

    def price(self, prices: tuple[float, float]) -> float:
        """Return the price, given those of a million tokens read and written."""
        return (self.read * prices[0] + self.written * prices[1]) / 1e6

    def as_dict(self, prices: tuple[float, float] | None) -> dict[str, Any]:
        return asdict(self) | ({} if prices is None else {"price": self.price(prices)})


def estimated(questions: Iterable[str], written: int) -> Cost:
    """Return about what questions cost, before they are asked.

    Args:
        written: tokens of an answer.
    """
    cost = Cost()
    for question in questions:
        cost.add((-(-len(question) // CHARACTERS), written))
    return cost


def cost_of(lines: Iterable[Mapping[str, Any]]) -> Cost:
    """Return what the explanations of a file have cost."""
    cost = Cost()
    for line in lines:
        if line["tokens"] is not None:
            cost.add(tuple(line["tokens"]))
    return cost
