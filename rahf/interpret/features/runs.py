"""A training of dictionaries from a corpus to a folder: train, write, measure.

The folder holds a dictionary by layer, size and seed, `quality.json`, `quality.md`, `quality.png`
and `log.jsonl`. Knows the parts; has no idea of its own.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rahf.artifacts import LOG_FILE, alone, write_json, write_lines, write_text
from rahf.interpret.features.bases import fingerprint_of
from rahf.interpret.features.checkpoints import SETTINGS_FILE, WEIGHTS_FILE, save_dictionary
from rahf.interpret.features.corpus import Corpus, Piece, split_documents
from rahf.interpret.features.dictionary import Origin
from rahf.interpret.features.quality import agreement_of, fit_of, kept_of
from rahf.interpret.features.streams import Schedule, StateReader, schedule
from rahf.interpret.features.topk import TopKDictionary
from rahf.interpret.features.training import Name, Settings, Trained, train_coders
from rahf.models.adapters import base_name
from rahf.records.stage_record import StageRecord
from rahf.report.features import quality_figure, quality_table

CHECKPOINT = ".checkpoint.safetensors"

LOSS_TOKENS, LOSS_BATCH = 5000, 2
"""Held-out tokens that the kept loss is measured on, and pieces at once: each keeps predictions
over the full vocabulary.
"""

FEW_STEPS = 300

TRIED = 2048
"""Tokens that an estimate of the time is made from."""


class Job(NamedTuple):
    """What is trained on what."""

    reader: StateReader
    corpus: Corpus
    settings: Settings
    tokens: int  # to train on
    held_out: int  # tokens to measure on
    adapter: str | None  # name of the adapter that takes part


def train_dictionaries(
    job: Job,
    folder: Path,
    made_with: Mapping[str, Any],
    made_from: Mapping[str, str | None] | None = None,
    made_by: str | None = None,
    **training: Any,
) -> dict[str, Any]:
    """Train, write and measure dictionaries, or resume; return the figures of `quality.json`.

    Args:
        made_with, made_from, made_by: settings, files and command; see `StageRecord`.
        training: options of `train_coders`.

    Raises:
        ValueError: the folder holds a training with other settings; a finished dictionary in it
            is gone or changed; the variance explained is not finite; another process writes it.
    """
    with alone(folder, wait=False):
        record = StageRecord(folder, made_with, made_from=made_from, made_by=made_by)
        if record.is_complete():
            figures = record.begun()
            check_written(folder, job, figures.pop("contents", {}))
            return figures
        plan, held_out = planned(job)
        record.begin()
        trained = train_coders(job.reader, plan, job.settings, folder / CHECKPOINT, **training)
        dictionaries = finished(job, trained, fingerprint_of(job.reader.model))
        for name, dictionary in dictionaries.items():
            save_dictionary(dictionary, folder / str(name))
        pieces = [job.corpus.piece(index) for index in held_out.tolist()]
        figures = measured(job, dictionaries, trained, pieces)
        check_finite(folder, figures)
        write_json(folder / "quality.json", figures)
        write_lines(folder / LOG_FILE, trained.log)
        write_text(folder / "quality.md", quality_table(figures) + "\n")
        quality_figure(figures, trained.log, folder / "quality.png")
        record.finish(**figures, contents=contents_of(folder, dictionaries))
        (folder / CHECKPOINT).unlink()
    return figures


def contents_of(folder: Path, names: Iterable[Name]) -> dict[str, str | None]:
    """Return a hash of each file of the dictionaries in a folder; None: there is no such file."""
    found = {}
    for part in (f"{name}/{file}" for name in names for file in (SETTINGS_FILE, WEIGHTS_FILE)):
        found[part] = None
        if (folder / part).is_file():
            with (folder / part).open("rb") as file:
                found[part] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return found


def check_written(folder: Path, job: Job, contents: Mapping[str, str]) -> None:
    """Refuse a finished training whose dictionaries are not those that it wrote.

    Args:
        contents: hashes that the training recorded; what is not in them is only looked for.
    """
    for part, now in contents_of(folder, job.settings.names(job.reader.layers)).items():
        if now is None or contents.get(part, now) != now:
            what = "is missing" if now is None else "differs from what the training wrote"
            raise ValueError(f"{folder / part} {what}. Delete the folder {folder} to train again.")


def check_finite(folder: Path, figures: Mapping[str, Any]) -> None:
    """Refuse dictionaries whose variance explained is not finite."""
    for row in figures["dictionaries"]:
        if not math.isfinite(row["explained"]):
            raise ValueError(
                f"{Name(row['layer'], row['latents'], row['seed'])}: the variance explained is "
                f"{row['explained']}. Delete the folder {folder} and train again, with a lower "
                "learning rate or more held-out text."
            )


def planned(job: Job) -> tuple[Schedule, torch.Tensor]:
    """Return the blocks to train on, and the pieces of held-out documents."""
    seed = job.settings.seeds[0]
    train, held_out = split_documents(job.corpus, job.held_out, seed)
    return schedule(job.corpus, train, job.tokens, seed), held_out


def finished(job: Job, trained: Trained, fingerprint: str | None) -> dict[Name, TopKDictionary]:
    """Return the trained dictionaries with their origins."""
    reader = job.reader
    return {
        name: coder.dictionary(
            Origin(
                base_name(reader.model),
                fingerprint,
                name.layer,
                reader.site,
                reader.kind,
                name.seed,
                job.adapter,
            )
        )
        for name, coder in trained.coders.items()
    }


def measured(
    job: Job, dictionaries: Mapping[Name, TopKDictionary], trained: Trained, pieces: list[Piece]
) -> dict[str, Any]:
    """Return the figures of every dictionary on held-out pieces."""
    whole, log = job.reader(pieces), trained.log
    states = job.settings.read(whole, job.reader.kind)
    read = torch.tensor([int(piece.read.sum()) for piece in pieces])
    some = pieces[: 1 + int((read.cumsum(0) < LOSS_TOKENS).sum())]
    reader = job.reader._replace(batch_size=LOSS_BATCH)
    kept = kept_of(dictionaries, reader, some, massive=job.settings.massive)
    rows = []
    for name, dictionary in dictionaries.items():
        of_layer = states[reader.layers.index(name.layer)]
        figures = name._asdict() | fit_of(dictionary, of_layer.split(TRIED))._asdict()
        figures["dead"] = log[-1]["dead"][str(name)] / name.latents
        figures["loss"] = kept[name]._asdict()
        figures["agreement"] = None
        for seed in [seed for seed in job.settings.seeds if seed != name.seed][:1]:
            other = dictionaries[name._replace(seed=seed)]
            figures["agreement"] = agreement_of(dictionary, other, dictionary.signed)._asdict()
        rows.append(figures)
    return {
        "kind": reader.kind,
        "site": reader.site,
        "tokens": log[-1]["tokens"],
        "held_out_tokens": states.shape[1],
        "massive_tokens": whole.shape[1] - states.shape[1],
        "reading_seconds": sum(line["reading_seconds"] for line in log),
        "training_seconds": sum(line["training_seconds"] for line in log),
        "dictionaries": rows,
    }


def misfits(job: Job) -> list[str]:
    """Return what is worth knowing before the training: a text or steps that are too few."""
    found = []
    own, steps = int(job.corpus.counts().sum()), job.tokens // job.settings.batch_tokens
    if own < job.tokens:
        found.append(
            f"the text has {own:,} tokens, held-out ones included, so each is seen "
            f"{job.tokens / own:.1f} times; give more text, or fewer tokens."
        )
    if steps < FEW_STEPS:
        found.append(
            f"{job.tokens:,} tokens make {steps} {'step' if steps == 1 else 'steps'} of "
            f"{job.settings.batch_tokens:,} tokens, too few to settle "
            f"(about {FEW_STEPS}); give more tokens, or smaller steps."
        )
    return found
