"""How much is scored in one forward: logits are what a measurement holds most of.

Knows lengths alone; needs no torch.
"""

from collections.abc import Iterator, Sequence

SCORED_AT_ONCE = 2048
"""Tokens whose logits a measurement holds at once: 0.4 GB with a vocabulary of 50,000 (float32)."""


def scored_together(lengths: Sequence[int], batch_size: int) -> Iterator[slice]:
    """Rows that are scored in one forward, in their order: at most `batch_size`, and no more than
    SCORED_AT_ONCE tokens if all were as long as the longest; a longer row stands alone.

    Args:
        lengths: scored tokens of each row.
    """
    start, longest = 0, 0
    for index, length in enumerate(lengths):
        longest, count = max(longest, length), index - start
        if count and (count == batch_size or (count + 1) * longest > SCORED_AT_ONCE):
            yield slice(start, index)
            start, longest = index, length
    if lengths:
        yield slice(start, len(lengths))
