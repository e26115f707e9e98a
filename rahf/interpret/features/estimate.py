"""What a training of dictionaries will take, from a short trial.

Knows the parts of a training; writes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any, NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

from rahf.interpret.features.coder import Coder
from rahf.interpret.features.corpus import Piece, split_documents
from rahf.interpret.features.quality import agreement_of, fit_of, kept_of
from rahf.interpret.features.runs import LOSS_BATCH, LOSS_TOKENS, TRIED, Job, finished
from rahf.interpret.features.streams import BLOCK, BlockReader, schedule
from rahf.interpret.features.training import Name, Trained, begun

COMPARED = 1024
"""Latents whose comparison with another dictionary is timed."""


class Estimate(NamedTuple):
    """What a training will take, from a short trial."""

    text_tokens: int  # that can be read, held-out ones included
    passes: float  # how often each text is read
    dictionaries: int
    seconds: float
    reading: float  # share of the seconds for the model's forward passes
    measuring: float  # share of the seconds for the figures on held-out text
    memory: int  # bytes beside the model: states and dictionaries with their moments
    disk: int  # bytes of the finished dictionaries


def estimated(job: Job) -> Estimate:
    """Return what the training will take: reads a few pieces, makes one step and measures it."""
    seed, counts = job.settings.seeds[0], job.corpus.counts()
    train, held_out = split_documents(job.corpus, job.held_out, seed)
    # Further passes over the text are like the first: a plan of billions of tokens is not made.
    own = int(counts[train].sum())
    plan = schedule(job.corpus, train, min(job.tokens, own + BLOCK), seed)
    total, blocks = max(job.tokens, sum(plan.tokens)), BlockReader(job.reader, plan)
    pieces = _first_pieces(job, plan.blocks[0])
    read = sum(int(piece.read.sum()) for piece in pieces)
    job.reader(pieces[:1])  # what a first pass sets up is not counted
    states, reading = _timed(lambda: job.reader(pieces))
    states = job.settings.read(states, job.reader.kind)
    coders = begun(states, job.reader.layers, job.settings)
    batch = states[:, : job.settings.batch_tokens]
    _, training = _timed(lambda: _one_step(job, coders, batch, read))
    measured = int(counts[held_out].sum())
    reads = (blocks.tokens if blocks.once else total) * reading / read
    measures = _measuring_seconds(job, coders, states, held_out) + measured * reading / read
    seconds = reads + total * training / batch.shape[1] + measures
    weights = 4 * sum(part.numel() for coder in coders.values() for part in coder.weights)
    kept = 4 * len(job.reader.layers) * min(total, BLOCK) * states.shape[-1]
    whole = int(counts.sum())
    memory = (3 if blocks.once else 2) * kept + 4 * weights
    shares = (reads / seconds, measures / seconds)
    return Estimate(whole, total / whole, len(coders), seconds, *shares, memory, weights)


def _first_pieces(job: Job, block: Int64[Tensor, " pieces"]) -> list[Piece]:
    """Return pieces of a block that read `TRIED` tokens, or all."""
    pieces, read = [], 0
    for index in block.tolist():
        if read >= TRIED:
            break
        pieces.append(job.corpus.piece(index))
        read += int(pieces[-1].read.sum())
    return pieces


def _one_step(
    job: Job, coders: Mapping[Name, Coder], batch: Float[Tensor, "layers tokens d_model"], read: int
) -> None:
    for name, coder in coders.items():
        coder.step(batch[job.reader.layers.index(name.layer)], 0.5, dead_after=read)


def _measuring_seconds(
    job: Job,
    coders: dict[Name, Coder],
    states: Float[Tensor, "layers tokens d_model"],
    held_out: Int64[Tensor, " pieces"],
) -> float:
    """Return about how long the figures of all dictionaries take, without the states."""
    made = finished(job, Trained(coders, [], 0), None)
    counts, massive = job.corpus.counts()[held_out], job.settings.massive
    pieces = [job.corpus.piece(index) for index in held_out[:LOSS_BATCH].tolist()]
    reader = job.reader._replace(batch_size=LOSS_BATCH)
    _, loss = _timed(lambda: kept_of(made, reader, pieces, massive=massive))
    _, fit = _timed(
        lambda: [fit_of(d, [states[job.reader.layers.index(n.layer)]]) for n, d in made.items()]
    )
    tokens = int(counts.sum())
    seconds = loss * min(tokens, LOSS_TOKENS) / max(1, int(counts[:LOSS_BATCH].sum()))
    seconds += fit * tokens / states.shape[1]
    for name, dictionary in made.items() if len(job.settings.seeds) > 1 else ():
        rows = dictionary.directions[:COMPARED]
        few = replace(dictionary, weights=dictionary.weights._replace(directions=rows))
        _, compared = _timed(lambda few=few, whole=dictionary: agreement_of(few, whole))
        seconds += compared * name.latents / len(rows)
    return seconds


def _timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and its seconds."""
    start = perf_counter()
    made = make()
    return made, perf_counter() - start
