"""One pass over pairs: directions by several fitters, by both halves of the data, and what they are
worth on held-out pairs.

Knows readers and fitters; knows no recipe and no file.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from rahf.directions.fitters import FITTERS
from rahf.directions.states import Reader, Samples, from_all_ranks

Vectors = Mapping[str, Float[Tensor, "layers d_model"]]


class Fitted(NamedTuple):
    """Vectors by the name of their fitter."""

    vectors: Vectors
    halves: tuple[Vectors, Vectors]  # each from one half of the pairs
    rms: Float[Tensor, " layers"]  # root mean square of the states' norms
    contrasts: int  # differences that were read: one or two a pair


def fit(
    reader: Reader,
    pairs: Dataset,
    fits: Sequence[str],
    *,
    seed: int,
    batch_size: int,
    state: PartialState,
) -> Fitted:
    """Fit directions in one pass over `pairs`, drawn in an order that the seed decides.

    Every rank reads its share of each batch; the result is that of one process whose batches are
    the ranks' joined.

    Raises:
        ValueError: fewer than two pairs.
    """
    if len(pairs) < 2:
        raise ValueError(
            f"{len(pairs)} pairs cannot be split in two halves; give at least 2 to fit directions."
        )
    order = np.random.default_rng(seed).permutation(len(pairs))
    whole, *halves = ({name: FITTERS[name]() for name in fits} for _ in range(3))
    square, weight, contrasts = 0.0, 0.0, 0
    for half, indices in zip(halves, np.array_split(order, 2), strict=True):
        for samples in read(reader, pairs, indices.tolist(), batch_size, state):
            for fitter in (*whole.values(), *half.values()):
                fitter.update(samples)
            square = square + (samples.square * samples.square_weight).sum(1).double()
            weight = weight + samples.square_weight.sum().double()
            contrasts += samples.pairs
    vectors = [
        {name: fitter.vectors().cpu() for name, fitter in fitters.items()}
        for fitters in (whole, *halves)
    ]
    rms = (square / weight).sqrt().float().cpu()
    return Fitted(vectors[0], (vectors[1], vectors[2]), rms, contrasts)


def read(
    reader: Reader,
    pairs: Dataset,
    indices: Sequence[int],
    batch_size: int,
    state: PartialState,
) -> Iterator[Samples]:
    """Return samples of the pairs at `indices`, the same on every rank."""
    rank, world = state.process_index, state.num_processes
    step = batch_size * world
    for start in tqdm(
        range(0, len(indices), step),
        "reading",
        leave=False,
        disable=not state.is_main_process,
    ):
        together = indices[start : start + step]
        share = together[rank * batch_size : (rank + 1) * batch_size]
        # A rank without a share of the last batch reads a pair that then weighs nothing.
        samples = reader([pairs[index] for index in share or together[:1]])
        yield from_all_ranks(samples if share else weightless(samples), state)


def weightless(samples: Samples) -> Samples:
    zeros = {
        name: torch.zeros_like(getattr(samples, name))
        for name in Samples._fields
        if name.endswith("weight")
    }
    return samples._replace(**zeros)


class Measured(NamedTuple):
    """What vectors are worth on held-out pairs, per layer, by the name of the vectors."""

    separability: dict[str, list[float]]  # area under the ROC curve; 0.5: chance
    explained: dict[str, list[float]]  # share of the differences' energy, as a constant
    rms: Float[Tensor, " layers"]  # root mean square of the states' norms


def measure(
    reader: Reader,
    pairs: Dataset,
    vectors: Vectors,
    *,
    batch_size: int,
    state: PartialState,
) -> Measured:
    """Project held-out states on each vector, and compare held-out differences with it."""
    scores: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    weights: tuple[list[Tensor], list[Tensor]] = ([], [])
    energy, left = 0.0, dict.fromkeys(vectors, 0.0)
    square, rows = 0.0, 0.0
    for samples in read(reader, pairs, range(len(pairs)), batch_size, state):
        share = samples.difference_weight
        square = square + (samples.square * samples.square_weight).sum(1).double()
        rows = rows + samples.square_weight.sum().double()
        energy = energy + _energy(samples.difference, share)
        weights[0].append(samples.positive_weight.cpu())
        weights[1].append(samples.negative_weight.cpu())
        for name, vector in vectors.items():
            missed = samples.difference - vector[:, None].to(share.device)
            left[name] = left[name] + _energy(missed, share)
            for side, states in enumerate((samples.positive, samples.negative)):
                axis = nn.functional.normalize(vector, dim=-1).to(states.device)
                scores[name, side].append(torch.einsum("lsd,ld->ls", states, axis).cpu())
    areas = {name: _areas(scores[name, 0], scores[name, 1], weights) for name in vectors}
    explained = {name: (1 - rest / energy).tolist() for name, rest in left.items()}
    return Measured(areas, explained, (square / rows).sqrt().float().cpu())


def _areas(
    positive: Sequence[Tensor],
    negative: Sequence[Tensor],
    weights: tuple[Sequence[Tensor], Sequence[Tensor]],
) -> list[float]:
    """Return the area under the ROC curve of each layer, from the scores of all batches."""
    of_positive, of_negative = (torch.cat(parts) for parts in weights)
    return [
        area_under_curve(above, of_positive, below, of_negative)
        for above, below in zip(torch.cat(positive, 1), torch.cat(negative, 1), strict=True)
    ]


def _energy(
    states: Float[Tensor, "layers samples d_model"], weight: Float[Tensor, " samples"]
) -> Float[Tensor, " layers"]:
    return (states.square().sum(-1) * weight).sum(1).double()


def area_under_curve(
    positive: Float[Tensor, " positive"],
    positive_weight: Float[Tensor, " positive"],
    negative: Float[Tensor, " negative"],
    negative_weight: Float[Tensor, " negative"],
) -> float:
    """Return the probability that a positive score exceeds a negative one, ties counting a half."""
    order = negative.argsort()
    ranked = negative[order].contiguous()
    below = nn.functional.pad(negative_weight[order].double().cumsum(0), (1, 0))
    beaten = sum(
        below[torch.searchsorted(ranked, positive, side=side)] for side in ("left", "right")
    )
    total = below[-1] * positive_weight.double().sum()
    return (beaten / 2 @ positive_weight.double() / total).item()


def cosines(
    first: Float[Tensor, "layers d_model"], second: Float[Tensor, "layers d_model"]
) -> list[float]:
    """Return the cosine of two vectors per layer."""
    return nn.functional.cosine_similarity(first, second, dim=-1).tolist()
