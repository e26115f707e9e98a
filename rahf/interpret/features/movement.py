"""Which latents moved between a base and its aligned models, on the same responses.

The effect of a latent is the mean change of its activation over response tokens. Beside it
are what a placebo does to the same latent, and whether training with other seeds moves it alike.
Knows codes; knows no model and no file.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from rahf.interpret.features.clustered import (
    ClusteredMeans,
    ClusteredSums,
    Correlations,
    benjamini_hochberg,
)
from rahf.interpret.features.dictionary import SparseCodes

LEAST_PROMPTS = 5
"""Prompts in which a latent has to be active to be tested: below, an interval means nothing."""

BAND = 0.95
"""Share of the latents whose size under the placebo is within its band."""

FALSE_DISCOVERIES = 0.05
POSITION_BINS = (1, 2, 3, 5, 9, 17, 33, 65, 129, 257, 513, 1025)
"""Tokens of a response at which ranges of positions begin, after the first range."""

QUANTILES = 100
"""Steps of the quantiles in which sizes are kept."""

TRACKS = 0.5
"""Share of the variance of an activation that position or length alone accounts for."""

CERTAIN = 1e-3  # p value of the correlation with length


class Said(NamedTuple):
    """One response as the base and the aligned models encode it, on the same tokens."""

    prompt: int  # cluster; the responses to one prompt follow one another
    base: SparseCodes  # of no difference where the dictionary is of differences
    aligned: Mapping[str, SparseCodes]  # by adapter
    divergence: float | None = None  # mean KL of the first adapter's predictions, nats per token


class Change(NamedTuple):
    """What one adapter did to each latent."""

    effect: ClusteredMeans  # of the activation, per response token
    q: Float64[Tensor, " latents"]  # of Benjamini and Hochberg, over the tested latents
    size: Float64[Tensor, " latents"]  # effect / spread of the activation, one for all adapters
    rate: Float64[Tensor, " latents"]  # share of tokens in which the latent is active


class Moved(NamedTuple):
    """What is frozen after the last response."""

    changes: dict[str, Change]  # by adapter, placebos included
    tested: Bool[Tensor, " latents"]
    base_rate: Float64[Tensor, " latents"]
    band: float | None  # of |size| under the placebos; None: no placebo
    excess: Float64[Tensor, " latents"]  # size of the first adapter minus the placebos' mean
    position: Float64[Tensor, " latents"]  # share of variance between ranges of positions
    length: Float64[Tensor, " latents"]  # squared correlation with the response's length, or 0
    divergence: Float64[Tensor, " latents"]  # correlation of the change with the token KL
    divergence_p: Float64[Tensor, " latents"]  # of that correlation
    prompts: int
    tokens: int

    def tracks(self, latent: int) -> list[str]:
        """Return of position and length those that alone account for most of the activation."""
        shares = {"position": self.position, "length": self.length}
        return [name for name, share in shares.items() if share[latent] >= TRACKS]


class _Totals:
    """Sums over tokens that make a latent's rate and spread."""

    def __init__(self, latents: int):
        self.sums, self.squares, self.active = torch.zeros(3, latents, dtype=torch.double)

    def add(self, indices: Tensor, values: Tensor) -> Float64[Tensor, " latents"]:
        """Add the entries of a response; return the sum over its tokens."""
        sums = torch.zeros_like(self.sums).index_add_(0, indices, values)
        self.sums += sums
        self.squares.index_add_(0, indices, values.square())
        self.active += torch.bincount(indices, minlength=len(sums))
        return sums

    def variance(self, tokens: int) -> Float64[Tensor, " latents"]:
        return (self.squares / tokens - (self.sums / tokens).square()).clamp(min=0)


class Movement:
    """Gathers responses one by one; `moved` freezes what they show.

    Args:
        adapters: names of the aligned models, the one that is reported first.
        placebos: those of them that were trained on shuffled pairs.
    """

    def __init__(self, latents: int, adapters: Sequence[str], placebos: Sequence[str] = ()):
        self.adapters, self.placebos, self.latents = tuple(adapters), tuple(placebos), latents
        self._base = _Totals(latents)
        self._aligned = {name: _Totals(latents) for name in adapters}
        self._changes = {name: ClusteredSums(latents) for name in adapters}
        self._seen = torch.zeros(latents, dtype=torch.long)  # prompts in which it is active
        self._bins = torch.zeros(len(POSITION_BINS) + 1, latents, dtype=torch.double)
        self._bin_tokens = torch.zeros(len(POSITION_BINS) + 1, dtype=torch.double)
        self._length, self._divergence = Correlations(latents), Correlations(latents)
        self._open: dict[str, Tensor] | None = None  # sums of the prompt that is being read
        self._prompt, self._tokens = -1, 0

    def add(self, said: Said) -> None:
        """Add a response; those to one prompt have to follow one another."""
        tokens = said.base.tokens
        if tokens == 0:
            return
        if said.prompt != self._prompt:
            self._close()
            self._prompt, self._tokens = said.prompt, 0
            self._open = {name: torch.zeros_like(self._base.sums) for name in self.adapters}
            self._active = torch.zeros(self.latents, dtype=torch.bool)
        before = self._base.add(*_entries(said.base))
        for name in self.adapters:
            sums = self._aligned[name].add(*_entries(said.aligned[name]))
            self._open[name] += sums - before
        first = said.aligned[self.adapters[0]]
        after = torch.zeros_like(before).index_add_(0, *_entries(first))
        for codes in (said.base, *said.aligned.values()):
            self._active[codes.indices.long().cpu()] = True
        self._tokens += tokens
        self._place(first)
        self._length.add(after / tokens, torch.tensor(float(tokens)).log().item())
        if said.divergence is not None:
            self._divergence.add((after - before) / tokens, said.divergence)

    def _place(self, codes: SparseCodes) -> None:
        """Add activations to the ranges of their positions."""
        edges = torch.tensor(POSITION_BINS)
        indices, values = _entries(codes)
        ranges = torch.bucketize(codes.owners().cpu(), edges, right=True)
        self._bins.view(-1).index_add_(0, ranges * self.latents + indices, values)
        places = torch.bucketize(torch.arange(codes.tokens), edges, right=True)
        self._bin_tokens += torch.bincount(places, minlength=len(self._bin_tokens))

    def _close(self) -> None:
        if self._open is None:
            return
        for name, sums in self._open.items():
            self._changes[name].add(sums, self._tokens)
        self._seen += self._active
        self._open = None

    def moved(self) -> Moved:
        """Return what all responses show.

        Raises:
            ValueError: fewer than two prompts.
        """
        self._close()
        tokens = int(self._bin_tokens.sum())
        tested = self._seen >= min(LEAST_PROMPTS, self._changes[self.adapters[0]].clusters)
        changes = {name: self._change(name, tokens, tested) for name in self.adapters}
        size, placebo, band = changes[self.adapters[0]].size, 0.0, None
        if self.placebos:
            sizes = torch.stack([changes[name].size for name in self.placebos])
            placebo, known = sizes.mean(0), sizes[:, tested].abs().flatten()
            band = known.quantile(BAND).item() if len(known) else None
        sure = self._length.p() < CERTAIN
        return Moved(
            changes,
            tested,
            self._base.active / tokens,
            band,
            size - placebo,
            self._between_positions(tokens),
            torch.where(sure, self._length.values().square(), torch.zeros_like(size)),
            self._divergence.values(),
            self._divergence.p(),
            self._changes[self.adapters[0]].clusters,
            tokens,
        )

    def _change(self, name: str, tokens: int, tested: Tensor) -> Change:
        effect, spread = self._changes[name].means(), self._spread(tokens)
        size = torch.where(spread > 0, effect.mean / spread, torch.zeros_like(spread))
        q = benjamini_hochberg(effect.p, tested)
        return Change(effect, q, size, self._aligned[name].active / tokens)

    def _spread(self, tokens: int) -> Float64[Tensor, " latents"]:
        """Return the standard deviation over tokens of the base and of all adapters.

        With a spread of its own, a placebo that hardly changes anything has the largest sizes.
        """
        totals = (self._base, *self._aligned.values())
        return (sum(each.variance(tokens) for each in totals) / len(totals)).sqrt()

    def _between_positions(self, tokens: int) -> Float64[Tensor, " latents"]:
        totals = self._aligned[self.adapters[0]]
        mean, filled = totals.sums / tokens, self._bin_tokens > 0
        counts = self._bin_tokens[filled][:, None]
        between = (counts * (self._bins[filled] / counts - mean).square()).sum(0) / tokens
        whole = totals.variance(tokens)
        return torch.where(whole > 0, between / whole, torch.zeros_like(whole))


def _entries(codes: SparseCodes) -> tuple[Int[Tensor, " entries"], Float64[Tensor, " entries"]]:
    return codes.indices.long().cpu(), codes.values.double().cpu()


def ranked(moved: Moved) -> Int[Tensor, " latents"]:
    """Return the tested latents: those that moved first, by what goes beyond the placebo.

    A latent moved where its q value is below 0.05 and its size is outside the placebo's band.
    """
    change = next(iter(moved.changes.values()))
    found = change.q < FALSE_DISCOVERIES
    if moved.band is not None:
        found &= change.size.abs() > moved.band
    weight = moved.excess.abs() + torch.where(found, 1e9, 0.0)
    order = weight.masked_fill(~moved.tested, -1).argsort(descending=True, stable=True)
    return order[: int(moved.tested.sum())]


def moved_count(change: Change) -> int:
    """Return the number of latents whose q value is below 0.05."""
    return int((change.q < FALSE_DISCOVERIES).sum())


def size_quantiles(moved: Moved, change: Change) -> list[float]:
    """Return the quantiles of the |sizes| of the tested latents, in steps of 1 / QUANTILES."""
    sizes = change.size[moved.tested].abs()
    steps = torch.linspace(0, 1, QUANTILES + 1, dtype=sizes.dtype)
    return sizes.quantile(steps).tolist() if len(sizes) else []


def outside(sizes: Float[Tensor, " latents"], moved: Moved) -> float:
    """Return the share of the tested latents whose size is outside the placebo's band."""
    return (sizes[moved.tested].abs() > moved.band).double().mean().item()


def beyond(moved: Moved, change: Change) -> Bool[Tensor, " latents"]:
    """Return which tested latents moved beyond the placebo's band."""
    found = moved.tested & (change.q < FALSE_DISCOVERIES)
    return found if moved.band is None else found & (change.size.abs() > moved.band)


def band_figures(moved: Moved, adapter: str, placebos: Sequence[str]) -> dict[str, Any]:
    """Return the placebo's band, and how many features of adapter and placebos move beyond it."""
    if moved.band is None:
        return dict.fromkeys(("beyond_placebo", "beyond_of_placebos", "placebo_band"))
    return {
        "beyond_placebo": int(beyond(moved, moved.changes[adapter]).sum()),
        "beyond_of_placebos": beyond_of_placebos(moved, placebos),
        "placebo_band": moved.band,
    }


def beyond_of_placebos(moved: Moved, placebos: Sequence[str]) -> float:
    """Return how many features of a placebo move beyond the band of the other placebos: the mean.

    A single placebo has the share of the tested features that its own band leaves.
    """
    if len(placebos) == 1:
        return (1 - BAND) * int(moved.tested.sum())
    counts = []
    for left_out in placebos:
        others = [moved.changes[name].size for name in placebos if name != left_out]
        band = torch.stack(others)[:, moved.tested].abs().quantile(BAND).item()
        counts.append(int(beyond(moved._replace(band=band), moved.changes[left_out]).sum()))
    return sum(counts) / len(counts)


def feature_figures(
    moved: Moved, latent: int, adapters: Sequence[str], placebos: Sequence[str]
) -> dict[str, Any]:
    """Return the figures of one feature."""
    change = moved.changes[adapters[0]]
    alike = [
        name
        for name in adapters
        if moved.changes[name].q[latent] < FALSE_DISCOVERIES
        and moved.changes[name].size[latent] * change.size[latent] > 0
    ]
    return {
        "feature": latent,
        "effect": change.effect.mean[latent].item(),
        "low": change.effect.low[latent].item(),
        "high": change.effect.high[latent].item(),
        "q": change.q[latent].item(),
        "size": change.size[latent].item(),
        "placebo_size": [moved.changes[name].size[latent].item() for name in placebos],
        "moved": bool(beyond(moved, change)[latent]),
        "seeds_alike": [len(alike), len(adapters)],
        "rate": [moved.base_rate[latent].item(), change.rate[latent].item()],
        "tracks": moved.tracks(latent),
    }
