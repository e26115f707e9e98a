"""Explanations by statistics: the most informative claim about the tokens of an active unit.

Candidates are classes of tokens, single tokens, the tokens before, and words of the text, those of
the last three chosen by lift. The one with the most information is taken: the divergence, in nats
per active token, between how often it is true where the unit is active and how often it is true in
any text, less what it takes to name its words among all others, so that a word seen by chance does
not pay for itself. Needs no model. Knows texts of tokens and where units are active.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rahf.interpret.explanations.claims import CLASSES, Claim, words_of
from rahf.interpret.explanations.examples import Background, Example
from rahf.interpret.explanations.explainer import Case, Explanation
from rahf.interpret.explanations.tokens import TokenTexts

LISTED = {"tokens": 8, "after": 5, "about": 5}
"""Tokens or words that a claim names, at most."""

LEAST_SEEN = 2
"""Active tokens, or activating windows, that a token or word has to be seen with."""

TYPICAL = 5
"""Tokens named beside the claim."""


class Seen(NamedTuple):
    """How often things are seen: in any text, or where a unit is active."""

    counts: Counter[str]
    total: int

    def share(self, values: Iterable[str]) -> float:
        """Return the share that is one of the values; never 0 or 1."""
        return (sum(self.counts[value] for value in values) + 0.5) / (self.total + 1)


class SeenWords(NamedTuple):
    """Words of windows; a window counts once, however many of the words it has."""

    windows: list[set[str]]
    counts: Counter[str]

    @property
    def total(self) -> int:
        return len(self.windows)

    def share(self, values: Iterable[str]) -> float:
        wanted = set(values)
        found = sum(not wanted.isdisjoint(words) for words in self.windows)
        return (found + 0.5) / (len(self.windows) + 1)


class Looked(NamedTuple):
    """What texts hold, by the kind of claim."""

    tokens: Seen
    after: Seen
    about: SeenWords

    def share(self, claim: Claim) -> float:
        """Return the share of the tokens, or of the windows, of which a claim is true."""
        if claim.kind == "class":
            [name] = claim.values
            return self.tokens.share(filter(CLASSES[name], self.tokens.counts))
        return getattr(self, claim.kind).share(claim.values)


def information(inside: float, outside: float) -> float:
    """Return the divergence of two shares, 0 where the claim is not truer of active tokens."""
    if inside <= outside:
        return 0.0
    rest = (1 - inside) * math.log((1 - inside) / (1 - outside))
    return inside * math.log(inside / outside) + rest


class Statistics:
    """The explainer that needs no model.

    Args:
        background: windows of any text.
    """

    id = "statistics"

    def __init__(self, texts: TokenTexts, background: Background):
        self._texts = texts
        windows = [self._shown(ids) for ids in background.windows]
        self._background = _looked((tokens, range(len(tokens))) for tokens in windows)
        self._classes = {name: self._background.share(Claim("class", (name,))) for name in CLASSES}

    def explain(self, cases: Sequence[Case]) -> list[Explanation]:
        return [Explanation(self.sentence(case.shown)) for case in cases]

    def sentence(self, examples: Sequence[Example]) -> str | None:
        """Return the sentence of the best claim; None where nothing tells active tokens apart."""
        active = _looked(
            (self._shown(example.ids), example.active) for example in examples if example.activates
        )
        if not active.tokens.total:
            return None
        claims = [
            *(Claim("class", (name,)) for name in CLASSES),
            *(_chosen(kind, active, self._background) for kind in LISTED),
        ]
        scored = [(self._worth(claim, active), claim) for claim in claims if claim is not None]
        worth, best = max(scored, key=lambda each: each[0])
        if worth <= 0:
            return None
        return best.sentence(active.share(best), _typical(active.tokens))

    def _worth(self, claim: Claim, active: Looked) -> float:
        if claim.kind == "class":
            told = information(active.share(claim), self._classes[claim.values[0]])
            return told - math.log(len(CLASSES)) / active.tokens.total
        inside, outside = getattr(active, claim.kind), getattr(self._background, claim.kind)
        return _worth(claim.values, inside, outside)

    def _shown(self, ids: Sequence[int]) -> list[str]:
        return [self._texts.shown(token) for token in ids]


def _looked(windows: Iterable[tuple[list[str], Iterable[int]]]) -> Looked:
    """Count what is seen at the given places of windows, and in the windows."""
    tokens, after, words = Counter(), Counter(), []
    for window, places in windows:
        places = list(places)
        tokens.update(window[place] for place in places)
        after.update(window[place - 1] if place else "" for place in places)
        words.append(words_of(window))
    counts = Counter(word for window in words for word in window)
    return Looked(
        Seen(tokens, tokens.total()), Seen(after, after.total()), SeenWords(words, counts)
    )


def _chosen(kind: str, active: Looked, background: Looked) -> Claim | None:
    """Return the tokens or words that are most informative together, added one by one."""
    inside, outside = getattr(active, kind), getattr(background, kind)

    def worth(values: Sequence[str]) -> float:
        return _worth(values, inside, outside)

    known = [value for value, n in inside.counts.items() if n >= LEAST_SEEN and value]
    chosen, reached = (), 0.0
    for value in sorted(known, key=lambda value: (-worth([value]), value)):
        if len(chosen) == LISTED[kind]:
            break
        found = worth([*chosen, value])
        if found > reached:
            chosen, reached = (*chosen, value), found
    return Claim(kind, chosen) if chosen else None


def _worth(values: Sequence[str], inside: Seen | SeenWords, outside: Seen | SeenWords) -> float:
    """Return the information of values in nats per active token, less the cost of naming them."""
    named = len(values) * math.log(len(outside.counts) + 1)
    return information(inside.share(values), outside.share(values)) - named / inside.total


def _typical(active: Seen) -> list[str]:
    """Return the tokens on which the unit is active most often."""
    ordered = sorted(active.counts.items(), key=lambda each: (-each[1], each[0]))
    return [token for token, _ in ordered[:TYPICAL]]
