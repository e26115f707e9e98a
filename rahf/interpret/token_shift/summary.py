"""Records of shifted tokens, one a response -> shares, positions, kinds and the tokens that shift
most often.

End-of-text tokens are counted separately: whether the base would have stopped is not a choice of
words. Knows records; knows no model.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from statistics import fmean
from typing import Any, NamedTuple

from rahf.evaluation.intervals import ratio_estimate
from rahf.interpret.token_shift.kinds import KINDS
from rahf.interpret.token_shift.shift import BUCKETS

POSITION_BINS = (0, 1, 2, 3, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
"""Where the ranges of positions begin, counted in tokens from the start of the response."""

ShiftRecord = Mapping[str, Any]


class Token(NamedTuple):
    """One token of a response."""

    response: int  # index of its record
    position: int
    piece: str
    kind: str
    bucket: str
    aligned_rank: int
    kl: float
    base_choice: str


def tokens_of(records: Iterable[ShiftRecord]) -> list[Token]:
    """Return every token of every response."""
    fields = ("pieces", "kind", "bucket", "aligned_rank", "kl", "base_choice")
    return [
        Token(response, position, *values)
        for response, record in enumerate(records)
        for position, values in enumerate(zip(*(record[name] for name in fields), strict=True))
    ]


def summarize_shift(records: Sequence[ShiftRecord], top: int = 30) -> dict[str, Any]:
    """Return all figures; shares and mean KL carry a bootstrap interval over responses."""
    tokens = tokens_of(records)
    inside = [token for token in tokens if token.kind != "end"]
    return {
        "responses": len(records),
        **token_figures(inside),
        "end_of_text": token_figures([token for token in tokens if token.kind == "end"]),
        "by_kind": {
            kind: token_figures([token for token in inside if token.kind == kind])
            for kind in KINDS
            if kind != "end"
        },
        "by_position": by_position(inside),
        "top_shifted": top_shifted(inside, top),
    }


def token_figures(tokens: Sequence[Token]) -> dict[str, Any]:
    """Return the number of tokens, the share of each bucket, the mean KL, and how often the token
    is the aligned model's own first choice (1 for its greedy responses).
    """
    if not tokens:
        return {"tokens": 0}
    of_response = defaultdict(list)
    for token in tokens:
        of_response[token.response].append(token)
    counts = [len(group) for group in of_response.values()]

    def estimate(value, most: float = 1.0) -> dict[str, float]:
        sums = [sum(value(token) for token in group) for group in of_response.values()]
        return ratio_estimate(sums, counts, 0.0, most).as_dict()

    return {
        "tokens": len(tokens),
        **{name: estimate(lambda token, name=name: token.bucket == name) for name in BUCKETS},
        "kl": estimate(lambda token: token.kl, inf),
        "aligned_first_choice": fmean(token.aligned_rank == 1 for token in tokens),
    }


def by_position(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Return the figures of each range of positions that holds a token."""
    ranges = []
    for start, stop in zip(POSITION_BINS, (*POSITION_BINS[1:], None), strict=True):
        inside = [t for t in tokens if t.position >= start and (stop is None or t.position < stop)]
        if inside:
            last = max(token.position for token in inside)
            ranges.append({"first": start, "last": last, **token_figures(inside)})
    return ranges


def top_shifted(tokens: Sequence[Token], top: int) -> list[dict[str, Any]]:
    """Return the tokens that most often occur where the base would not have written them.

    Blanks around a token are ignored. Each comes with how often it occurs, and with the base's most
    frequent choice in its place.
    """
    occurrences = Counter(token.piece.strip() or token.piece for token in tokens)
    shifted = defaultdict(list)
    for token in tokens:
        if token.bucket == "shifted":
            shifted[token.piece.strip() or token.piece].append(token)
    order = sorted(shifted, key=lambda piece: (-len(shifted[piece]), piece))
    return [
        {
            "token": piece,
            "kind": Counter(token.kind for token in shifted[piece]).most_common(1)[0][0],
            "shifted": len(shifted[piece]),
            "occurrences": occurrences[piece],
            "kl": fmean(token.kl for token in shifted[piece]),
            "base_would_say": Counter(t.base_choice for t in shifted[piece]).most_common(1)[0][0],
        }
        for piece in order[:top]
    ]
