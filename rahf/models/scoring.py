"""Limit of what is scored in one forward: logits take most of a measurement's memory.

Knows only lengths; needs no torch.
"""

from collections.abc import Iterator, Sequence

SCORED_AT_ONCE = 2048
"""Tokens whose logits a measurement holds at once: 0.4 GB with a vocabulary of 50,000 (float32)."""


def scored_together(lengths: Sequence[int], batch_size: int) -> Iterator[slice]:
    """Yield the rows that are scored in one forward, in their order.

    At most `batch_size` rows, and SCORED_AT_ONCE tokens if all were as long as the longest. A
    longer row is a batch of its own.

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
