"""Progress of work that may take long: a bar with the time left, once five seconds have passed."""

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")

SECONDS = 5.0
"""Work that takes less shows no bar."""


def timed(work: Iterable[Item], label: str) -> Iterator[Item]:
    """Yield what is to be done, with a bar on the first of several ranks."""
    another = os.environ.get("RANK", "0") != "0"
    return iter(tqdm(work, label, leave=False, delay=SECONDS, disable=another))
