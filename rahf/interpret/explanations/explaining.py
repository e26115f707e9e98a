"""Explanations of many units from one pass over a corpus, in a folder that a killed run resumes.

Knows models, dictionaries and text; what explains is given to it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rahf.directions.vectors import Directions
from rahf.generation.record_file import ResumableFile
from rahf.interpret.explanations.examples import (
    Background,
    Drawing,
    background_of,
    draw_examples,
    windows_of,
    write_codes,
)
from rahf.interpret.explanations.explainer import Case, Explainer, Explanation
from rahf.interpret.explanations.records import (
    CODES,
    Record,
    lines_of,
    read_examples,
    read_vectors,
    write_examples,
    write_vectors,
)
from rahf.interpret.explanations.units import (
    Part,
    Unit,
    Units,
    feature_part,
    firing_rate,
    projections,
    random_directions,
)
from rahf.interpret.features.corpus import Corpus
from rahf.interpret.features.dictionary import Dictionary, Origin
from rahf.interpret.features.store import INDEX_FILE, CodeStore
from rahf.interpret.features.streams import StateReader

TRIED = 4096
"""Tokens that thresholds are set on."""

RATE = 0.01
"""Share of tokens in which a direction counts as active, where no feature sets it."""


class Wanted(NamedTuple):
    """What is explained."""

    dictionary: Dictionary | None
    latents: Sequence[int]
    directions: Directions | None
    random: int  # directions of no meaning beside them
    seed: int


class Job(NamedTuple):
    """A model that reads a corpus, and what is explained."""

    reader: StateReader
    corpus: Corpus
    wanted: Wanted
    drawing: Drawing
    folder: Path
    made_with: Mapping[
        str, Any
    ] = {}  # what decides the codes: those of something else are not used


def tried_states(job: Job) -> dict[int, Float[Tensor, "tokens d_model"]]:
    """Return the states of some tokens from all over the corpus, by layer."""
    order = np.random.default_rng([job.wanted.seed, 4]).permutation(job.corpus.pieces)
    pieces, read = [], 0
    for index in order.tolist():
        if read >= TRIED:
            break
        pieces.append(job.corpus.piece(index))
        read += int(pieces[-1].read.sum())
    return dict(zip(job.reader.layers, job.reader(pieces), strict=True))


def units_of(job: Job, states: dict[int, Float[Tensor, "tokens d_model"]]) -> Units:
    """Return what is explained, directions with thresholds, random ones as often active.

    Raises:
        ValueError: the dictionary lacks a latent.
    """
    wanted, parts, rate = job.wanted, [], RATE
    if wanted.dictionary is not None:
        parts.append(feature_part(wanted.dictionary, wanted.latents))
        rate = firing_rate(parts, states)
    given = wanted.directions
    for row, layer in enumerate(given.layers if given is not None else ()):
        unit = Unit("vector", layer, layer)
        parts.append(_directions(job, given.vectors[row : row + 1], states, rate, [unit]))
    for row, layer in enumerate(job.reader.layers):
        count = len(range(row, wanted.random, len(job.reader.layers)))
        if count:
            drawn = random_directions(count, states[layer].shape[1], wanted.seed + 7 * row)
            units = [Unit("random", number, layer) for number in range(count)]
            parts.append(_directions(job, drawn, states, rate, units))
    return Units(tuple(parts))


def _directions(
    job: Job,
    directions: Tensor,
    states: dict[int, Tensor],
    rate: float,
    units: Sequence[Unit],
) -> Part:
    layer = units[0].layer
    origin = Origin("any", None, layer, job.reader.site, job.reader.kind)
    made = projections(directions, states[layer], rate, origin)
    return Part(made, torch.arange(len(units)), tuple(units))


def explain(
    job: Job,
    explainer: Callable[[Background], Explainer],
    file: ResumableFile,
) -> None:
    """Write examples and explanations; a pass over the corpus that is done is not repeated.

    Raises:
        ValueError: the text is one document; the dictionary lacks a latent.
    """
    windows = windows_of(job.corpus, job.drawing.size, job.drawing.seed)
    file.begin()
    store = codes_of(job)
    names = [Unit(**name) for name in store.described["names"]]
    write_examples(job.folder, draw_examples(store, job.corpus, windows, names, job.drawing))
    examples, vectors = read_examples(job.folder), read_vectors(job.folder).directions
    background = background_of(job.corpus, windows, job.drawing.seed)
    cases = [Case(e.unit, e.shown, v) for e, v in zip(examples, vectors, strict=True)]
    made = explained(explainer(background), cases)
    records = [Record(e, each.text) for e, each in zip(examples, made, strict=True)]
    lines = lines_of(records, tokens=[each.tokens for each in made])
    kept = len(file.records)  # of a run that was killed while it wrote them
    file.add({"row": row, **line} for row, line in enumerate(lines) if row >= kept)


def codes_of(job: Job) -> CodeStore:
    """Return the codes of the corpus, from a pass that is done, that resumes, or that runs now.

    Codes that were made with other settings are of other units or another text: they are replaced.
    """
    codes, made_with = job.folder / CODES, json.loads(json.dumps(job.made_with))
    if (codes / INDEX_FILE).is_file():
        store = CodeStore(codes)
        if store.described.get("made_with") == made_with:
            return store
        (codes / INDEX_FILE).unlink()
    units = units_of(job, tried_states(job))
    vectors = write_vectors(job.folder, units)
    names = [unit._asdict() for unit in units.names]
    described = {"names": names, "made_with": made_with, "vectors": vectors}
    write_codes(job.reader, job.corpus, units, codes, **described)
    return CodeStore(codes)


def explained(explainer: Explainer, cases: Sequence[Case]) -> list[Explanation]:
    """Return the explanation of every unit that is active in a window; of others, that there is
    none.
    """
    active = [case for case in cases if any(example.activates for example in case.shown)]
    made = iter(explainer.explain(active))
    known = {id(case) for case in active}
    return [next(made) if id(case) in known else Explanation(None) for case in cases]


def pass_seconds(job: Job) -> float:
    """Return about how long the pass over the corpus takes, from a trial."""
    tried_states(job._replace(corpus=_first_piece(job.corpus)))  # what a first pass sets up
    start = perf_counter()
    states = tried_states(job)
    units_of(job, states).encode(states)
    read = len(next(iter(states.values())))
    return (perf_counter() - start) * int(job.corpus.read.sum()) / read


def _first_piece(corpus: Corpus) -> Corpus:
    end = int(corpus.starts[1])
    return Corpus(corpus.ids[:end], corpus.read[:end], corpus.starts[:2], corpus.documents[:1])


def explain_figures(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many units of each kind were explained."""
    figures: dict[str, Any] = {}
    for line in lines:
        part = figures.setdefault(line["kind"], {"units": 0, "explained": 0})
        part["units"] += 1
        part["explained"] += line["explanation"] is not None
    return figures
