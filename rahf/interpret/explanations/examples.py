"""Texts in which units are active, and texts in which they are not: what explanations are made
from, and other ones that they are scored on.

One pass over a corpus encodes all units into a store on disk; windows of tokens are then drawn for
each unit from the store. The documents are split in two: windows of one half are shown to
explainers, those of the other are scored. Every draw depends on the seed and the unit only. Knows
ids and activations; knows no tokenizer.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm.auto import tqdm

from rahf.interpret.explanations.units import Unit, Units
from rahf.interpret.features.corpus import Corpus
from rahf.interpret.features.store import CodeStore, CodeWriter
from rahf.interpret.features.streams import StateReader

ExampleKind = Literal["top", "quantile", "random", "near"]
"""Of activating windows: the strongest, or drawn from a quantile. Of others: any, or those with
tokens on which the unit is often active."""

PIECES_AT_ONCE = 64
UNITS_AT_ONCE = 256
SAVE_SECONDS = 60.0
"""Time after which a pass is saved."""

TYPICAL = 8
"""Tokens on which a unit is active most often, which near misses hold."""

BACKGROUND = 2000
"""Windows, drawn whatever is active in them, that show what text is like."""


@dataclass(frozen=True)
class Example:
    """A window of a text, and where the unit is active in it."""

    ids: list[int]
    active: dict[int, float]  # places in the window, with the activation
    kind: ExampleKind
    quantile: int | None = None  # of the peak among activating windows, 0 the lowest
    wrong: list[int] = field(default_factory=list)  # as many places in which it is not active

    @property
    def activates(self) -> bool:
        return self.kind in ("top", "quantile")

    @property
    def peak(self) -> float:
        return max(self.active.values(), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"active": {str(k): v for k, v in self.active.items()}}

    @classmethod
    def of_dict(cls, record: dict[str, Any]) -> "Example":
        """Return the window of a record.

        Raises:
            ValueError, KeyError, TypeError: a field is missing, or of another type or range.
        """
        active = {int(place): float(value) for place, value in record["active"].items()}
        ids, wrong, quantile = record["ids"], record["wrong"], record["quantile"]
        if not all(type(number) is int and number >= 0 for number in (*ids, *wrong)):
            raise ValueError("ids or places that are not whole numbers")
        if not all(0 <= place < len(ids) for place in (*active, *wrong)):
            raise ValueError(f"a place beyond the {len(ids)} ids")
        if not all(map(math.isfinite, active.values())):
            raise ValueError("an activation that is not finite")
        if record["kind"] not in get_args(ExampleKind) or not isinstance(quantile, int | None):
            raise ValueError(f"kind {record['kind']!r}, quantile {quantile!r}")
        return cls(ids, active, record["kind"], quantile, wrong)


class Examples(NamedTuple):
    """What was drawn for one unit."""

    unit: Unit
    rate: float  # share of the tokens in which it is active
    windows: int  # activating ones of the scored half
    shown: list[Example]
    scored: list[Example]


@dataclass(frozen=True)
class Drawing:
    """How many windows are drawn, of each half."""

    shown: int = 30  # activating, a quarter of them the strongest; as many others
    scored: int = 20  # activating; as many others
    quantiles: int = 5
    size: int = 32  # tokens of a window
    seed: int = 0


class Windows(NamedTuple):
    """Stretches of the corpus that are read as one text."""

    starts: Int64[Tensor, " windows"]
    ends: Int64[Tensor, " windows"]
    of: Int64[Tensor, " tokens"]  # window of each token of the corpus
    usable: Bool[Tensor, " windows"]  # long enough, with a token that is read
    scored: Bool[Tensor, " windows"]  # of the documents that explanations are scored on


def windows_of(corpus: Corpus, size: int, seed: int) -> Windows:
    """Return windows of `size` tokens, or what is left of a piece.

    Raises:
        ValueError: all text is one document, so that nothing is left to score on.
    """
    lengths = corpus.starts.diff()
    counts = (lengths + size - 1) // size
    pieces = torch.arange(corpus.pieces).repeat_interleave(counts)
    first = (counts.cumsum(0) - counts)[pieces]
    starts = corpus.starts[pieces] + size * (torch.arange(len(pieces)) - first)
    ends = torch.minimum(starts + size, corpus.starts[pieces + 1])
    of = torch.arange(len(pieces)).repeat_interleave(ends - starts)
    read = torch.zeros(len(pieces), dtype=torch.long).index_add_(0, of, corpus.read.long())
    names, documents = corpus.documents.unique(return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            "the text is one document, so explanations cannot be scored on other text: give more "
            "texts."
        )
    order = torch.from_numpy(np.random.default_rng([seed, 1]).permutation(len(names)))
    half = torch.zeros(len(names), dtype=torch.bool)
    half[order[: len(names) // 2]] = True
    usable = (read > 0) & (ends - starts >= max(1, size // 4))
    return Windows(starts, ends, of, usable, half[documents[pieces]])


def write_codes(
    reader: StateReader, corpus: Corpus, units: Units, folder: Path, **described: Any
) -> None:
    """Encode the tokens of a corpus that are read, in one pass; a killed pass resumes.

    Args:
        described: what the codes are of, as JSON has it; a pass of something else is not resumed.
    """
    writer = CodeWriter(folder, len(units.names))
    first, saved, counts = writer.resume(**described), monotonic(), corpus.counts()
    done = int(counts[:first].sum())
    with tqdm(
        total=int(counts.sum()), initial=done, desc="reading", unit=" tokens", leave=False
    ) as bar:
        while first < corpus.pieces:
            last = min(first + PIECES_AT_ONCE, corpus.pieces)
            pieces = [corpus.piece(index) for index in range(first, last)]
            states = reader(pieces, bar.update)
            writer.add(units.encode(dict(zip(reader.layers, states, strict=True))))
            first = last
            if monotonic() - saved >= SAVE_SECONDS:
                writer.save(first, **described)
                saved = monotonic()
    writer.finish(**described)


class Background(NamedTuple):
    """Windows of the shown half, whatever is active in them."""

    windows: list[list[int]]


def background_of(corpus: Corpus, windows: Windows, seed: int) -> Background:
    usable = (windows.usable & ~windows.scored).nonzero().squeeze(1)
    drawn = _draw(usable, BACKGROUND, np.random.default_rng([seed, 2]))
    return Background([_ids(corpus, windows, window) for window in drawn.tolist()])


def draw_examples(
    store: CodeStore, corpus: Corpus, windows: Windows, units: Sequence[Unit], drawing: Drawing
) -> Iterator[Examples]:
    """Yield what is drawn for each unit, in their order."""
    places = corpus.read.nonzero().squeeze(1)
    assert len(places) == store.tokens, "codes of another corpus"
    for first in range(0, len(units), UNITS_AT_ONCE):
        some = range(first, min(first + UNITS_AT_ONCE, len(units)))
        found = store.firings(list(some))
        order = found.latents.argsort(stable=True)
        bounds = torch.searchsorted(found.latents[order], torch.tensor([*some, some.stop]))
        for row, index in enumerate(some):
            mine = order[int(bounds[row]) : int(bounds[row + 1])]
            active = _Active(places[found.tokens[mine]], found.values[mine].abs())
            yield _Drawer(corpus, windows, drawing).draw(units[index], active)


class _Active(NamedTuple):
    """Where one unit is active."""

    places: Int64[Tensor, " firings"]  # in the corpus, ascending
    values: Float[Tensor, " firings"]


class _Drawer(NamedTuple):
    corpus: Corpus
    windows: Windows
    drawing: Drawing

    def draw(self, unit: Unit, active: _Active) -> Examples:
        of = self.windows.of[active.places]
        peaks = torch.zeros(len(self.windows.starts))
        peaks.scatter_reduce_(0, of, active.values.float(), "amax")
        halves, counts, near = [], [], self._near(peaks, active)
        for scored in (False, True):
            rng = np.random.default_rng([self.drawing.seed, scored, *_seeds(unit)])
            half = self.windows.usable & (self.windows.scored == scored)
            counts.append(int((half & (peaks > 0)).sum()))
            drawn = self._activating(half, peaks, scored, rng)
            drawn += self._others(half & (peaks == 0), half & near, len(drawn), rng)
            halves.append([self._example(active, *each, rng) for each in drawn])
        rate = len(active.places) / max(1, int(self.corpus.read.sum()))
        return Examples(unit, rate, counts[1], *halves)

    def _activating(
        self, half: Tensor, peaks: Tensor, scored: bool, rng: np.random.Generator
    ) -> list[tuple[int, ExampleKind, int | None]]:
        """Return windows by rank of the peak: some of every quantile, and the strongest ones."""
        found = (half & (peaks > 0)).nonzero().squeeze(1)
        found = found[peaks[found].argsort(stable=True)]
        count = self.drawing.scored if scored else self.drawing.shown
        top = 0 if scored else count // 4
        strongest = found[len(found) - min(top, len(found)) :].tolist()
        drawn = [(window, "top", self.drawing.quantiles - 1) for window in strongest]
        groups = found[: len(found) - len(strongest)].tensor_split(self.drawing.quantiles)
        shares = np.diff(np.linspace(0, count - top, self.drawing.quantiles + 1).round())
        for quantile, (group, share) in enumerate(zip(groups, shares, strict=True)):
            drawn += [(w, "quantile", quantile) for w in _draw(group, int(share), rng).tolist()]
        return drawn

    def _near(self, peaks: Tensor, active: _Active) -> Bool[Tensor, " windows"]:
        """Return windows without activation that hold tokens on which the unit is often active."""
        ids, counts = self.corpus.ids[active.places].unique(return_counts=True)
        typical = ids[counts.argsort(descending=True)[:TYPICAL]]
        near = torch.zeros_like(self.windows.usable)
        near[self.windows.of[torch.isin(self.corpus.ids, typical) & self.corpus.read]] = True
        return near & (peaks == 0)

    def _others(
        self, silent: Tensor, near: Tensor, count: int, rng: np.random.Generator
    ) -> list[tuple[int, ExampleKind, None]]:
        """Return windows in which the unit is not active, half of them near misses."""
        misses = _draw(near.nonzero().squeeze(1), count // 2, rng)
        silent = silent.clone()
        silent[misses] = False
        others = _draw(silent.nonzero().squeeze(1), count - len(misses), rng)
        return [
            *((window, "near", None) for window in misses.tolist()),
            *((window, "random", None) for window in others.tolist()),
        ]

    def _example(
        self,
        active: _Active,
        window: int,
        kind: ExampleKind,
        quantile: int | None,
        rng: np.random.Generator,
    ) -> Example:
        start, end = int(self.windows.starts[window]), int(self.windows.ends[window])
        bounds = torch.searchsorted(active.places, torch.tensor([start, end])).tolist()
        places = (active.places[slice(*bounds)] - start).tolist()
        values = [round(value, 4) for value in active.values[slice(*bounds)].tolist()]
        read = self.corpus.read[start:end].nonzero().squeeze(1).tolist()
        free = sorted(set(read) - set(places))
        wrong = rng.permutation(free)[: len(places)].tolist() if len(free) >= len(places) else []
        ids = _ids(self.corpus, self.windows, window)
        return Example(ids, dict(zip(places, values, strict=True)), kind, quantile, sorted(wrong))


def _draw(given: Int64[Tensor, " windows"], count: int, rng: np.random.Generator) -> Tensor:
    return given[torch.from_numpy(rng.permutation(len(given))[:count])]


def _ids(corpus: Corpus, windows: Windows, window: int) -> list[int]:
    return corpus.ids[int(windows.starts[window]) : int(windows.ends[window])].tolist()


def _seeds(unit: Unit) -> tuple[int, int, int]:
    return ("feature", "vector", "random").index(unit.kind), unit.number, unit.layer
