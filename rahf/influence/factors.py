"""The curvature of a training, fitted in passes over its pairs and kept in files.

    FOLDER/key.json                the adapter, base and pairs that the factors belong to
    FOLDER/ekfac.safetensors       eigenbases and moments of each matrix; ekfac-2000 of 2,000 pairs
    FOLDER/kernel/17.safetensors   pseudo-gradients of the pairs of one batch

EK-FAC reads at most `fit_pairs` pairs, the kernel all. EK-FAC's first pass keeps the
pseudo-gradients on disk for the second where they fit there; otherwise that makes them again. A
pass that is stopped resumes with the batch after the last one that was kept; ranks share the
batches out. Knows objectives and files.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from jaxtyping import Float
from torch import Tensor

from rahf.artifacts import differences, identity_of, read_object, write_json
from rahf.influence.formula import Eigenbasis, rotate
from rahf.influence.gradients import (
    Consumer,
    Part,
    check_finite_gradients,
    merged,
    parameter_count,
    row_gradients,
)
from rahf.influence.objectives import Batch, Objective, in_batches
from rahf.influence.passes import Sums, checked_tensors, save_tensors, summed
from rahf.influence.trained import Subject
from rahf.interpret.features.bases import fingerprint_of
from rahf.report.progress import timed
from rahf.training.target_cache import digest_of_rows

KEY_FILE = "key.json"
EKFAC_FILE = "ekfac.safetensors"
KEPT_FOLDER = "pseudo"
FIT_PAIRS = 2000
"""Pairs that EK-FAC's factors are fitted to: means over pairs, which a sample has as well."""

KERNEL_BYTES = 8 * 2**30
"""Bytes of pseudo-gradients that the kernel may hold."""

KEPT_BYTES = 8 * 2**30
"""Bytes of pseudo-gradients that EK-FAC may keep on disk while it is fitted."""


def check_key(folder: Path, subject: Subject) -> None:
    """Write what the factors in `folder` belong to, or compare it to what is written.

    Raises:
        ValueError: the factors there are of another adapter, base or set of pairs.
    """
    key = {
        "kind": subject.training.kind,
        "adapter": identity_of(subject.training.folder / "adapter_model.safetensors"),
        "base": fingerprint_of(subject.objective.model),
        "pairs": digest_of_rows(subject.rows),
    }
    if subject.objective.bf16:
        key["products"] = "bfloat16"
    path = folder / KEY_FILE
    if not path.exists():
        if PartialState().is_main_process:
            write_json(path, key)
    elif changed := differences(read_object(path, f"Delete {folder} to fit again."), key):
        raise ValueError(
            f"{folder} holds factors of another adapter, base or set of pairs:\n{changed}"
            "Give another --factors folder, or delete that one."
        )


def fit_ekfac(
    objective: Objective,
    parts: Sequence[Part],
    batch_size: int,
    folder: Path,
    fit_pairs: int = FIT_PAIRS,
) -> list[Eigenbasis]:
    """Return the eigenbasis and moments of each matrix, read where they are fitted already.

    Args:
        fit_pairs: pairs to fit them to, drawn at random where there are more.
    """
    count, path = len(objective.rows), folder / EKFAC_FILE
    pairs = sorted(np.random.default_rng(0).permutation(count)[:fit_pairs].tolist())
    if len(pairs) < count:
        path = folder / f"ekfac-{len(pairs)}.safetensors"
    if not path.exists():
        bases = _eigenbases(objective, parts, pairs, batch_size, folder)
        fitted = _moments(objective, parts, bases, pairs, batch_size, folder)
        _write_factors(path, parts, fitted)
    return _read_factors(path, parts, objective.device)


def _eigenbases(
    objective: Objective,
    parts: Sequence[Part],
    pairs: Sequence[int],
    batch_size: int,
    folder: Path,
) -> list[Eigenbasis]:
    """Return the eigenvectors of the covariances of inputs and of output gradients."""

    kept = _may_keep(folder, len(pairs) * parameter_count(parts) * 4)

    def add(sums: Sums, places: list[int]) -> None:
        def gather(part: Part, inputs: Tensor, gradients: Tensor) -> None:
            for name, each in (("inputs", inputs), ("outputs", gradients)):
                tokens = each.flatten(0, 1)
                sums[f"{part.name}.{name}"] += (tokens.T @ tokens).double()

        batch = objective.quick_batch(places, whole=True, shared=False)
        examples = pseudo_gradients(objective, parts, batch, gather)
        if kept:
            save_tensors(_kept_at(folder, places), {"pseudo": examples}, {})

    zeros = {}
    for part in parts:
        for name, size in zip(("outputs", "inputs"), part.shape, strict=True):
            zeros[f"{part.name}.{name}"] = _zeros(size, size, objective)
    sums = summed(objective, pairs, batch_size, zeros, add, folder / "covariances")
    vectors = {name: torch.linalg.eigh(each).eigenvectors.float() for name, each in sums.items()}
    return [
        Eigenbasis(
            vectors[f"{part.name}.outputs"],
            vectors[f"{part.name}.inputs"],
            torch.zeros(part.shape, device=objective.device),
        )
        for part in parts
    ]


def _moments(
    objective: Objective,
    parts: Sequence[Part],
    bases: Sequence[Eigenbasis],
    pairs: Sequence[int],
    batch_size: int,
    folder: Path,
) -> list[Eigenbasis]:
    """Return the bases with the second moments of the pairs' pseudo-gradients in them."""

    def add(sums: Sums, places: list[int]) -> None:
        path = _kept_at(folder, places)
        if path.exists():
            shapes = {"pseudo": (None, parameter_count(parts))}
            examples = checked_tensors(path, shapes, objective.device)["pseudo"]
        else:
            batch = objective.quick_batch(places, whole=True)
            examples = pseudo_gradients(objective, parts, batch)
        for part, basis in zip(parts, bases, strict=True):
            rotated = rotate(part.matrices(examples), basis)
            sums[part.name] += rotated.square().sum(0).double()

    zeros = {part.name: _zeros(*part.shape, objective) for part in parts}
    sums = summed(objective, pairs, batch_size, zeros, add, folder / "moments")
    return [
        basis._replace(moments=(sums[part.name] / len(pairs)).float())
        for part, basis in zip(parts, bases, strict=True)
    ]


def _may_keep(folder: Path, needed: int) -> bool:
    """Return whether so many bytes may be kept on the disk of `folder`, and half of it is left."""
    folder.mkdir(parents=True, exist_ok=True)
    return needed <= min(KEPT_BYTES, shutil.disk_usage(folder).free // 2)


def _kept_at(folder: Path, places: Sequence[int]) -> Path:
    """Return where the pseudo-gradients of some pairs are kept, whichever rank reads them."""
    name = hashlib.blake2b(repr(list(places)).encode(), digest_size=8).hexdigest()
    return folder / KEPT_FOLDER / f"{name}.safetensors"


def pseudo_gradients(
    objective: Objective, parts: Sequence[Part], batch: Batch, also: Consumer | None = None
) -> Float[Tensor, "examples parameters"]:
    """Return the pseudo-gradient of each pair, then of each retained text.

    Args:
        also: is handed what the gradients are made of.
    """

    def loss() -> Tensor:
        with objective.quick():
            return objective.pseudo(batch)

    rows = row_gradients(parts, batch.mask, loss, batch.spans, also)
    check_finite_gradients(rows, _row_names(batch))
    return merged(rows, batch.example, int(batch.example.max()) + 1)


def _row_names(batch: Batch) -> list[str]:
    names = [*batch.names, *["a retained text"] * len(batch.example)]
    return [names[example] for example in batch.example.tolist()]


def _zeros(outputs: int, inputs: int, objective: Objective) -> Tensor:
    return torch.zeros(outputs, inputs, dtype=torch.double, device=objective.device)


def _write_factors(path: Path, parts: Sequence[Part], bases: Sequence[Eigenbasis]) -> None:
    state = PartialState()
    if state.is_main_process:
        tensors = {
            f"{part.name}.{name}": tensor
            for part, basis in zip(parts, bases, strict=True)
            for name, tensor in basis._asdict().items()
        }
        save_tensors(path, tensors, {"parts": json.dumps([part.name for part in parts])})
    state.wait_for_everyone()
    for left in path.parent.glob(f"*.{state.process_index}.partial"):
        left.unlink()
    if state.is_main_process:
        shutil.rmtree(path.parent / KEPT_FOLDER, ignore_errors=True)


def _read_factors(path: Path, parts: Sequence[Part], device: torch.device) -> list[Eigenbasis]:
    shapes: dict[str, tuple[int | None, ...]] = {}
    for part in parts:
        outputs, inputs = part.shape
        sizes = ((outputs, outputs), (inputs, inputs), (outputs, inputs))
        for name, size in zip(Eigenbasis._fields, sizes, strict=True):
            shapes[f"{part.name}.{name}"] = size
    tensors = checked_tensors(path, shapes, device)
    return [
        Eigenbasis(*(tensors[f"{part.name}.{name}"] for name in Eigenbasis._fields))
        for part in parts
    ]


def fit_kernel(
    objective: Objective, parts: Sequence[Part], batch_size: int, folder: Path
) -> Float[Tensor, "examples parameters"]:
    """Return the pseudo-gradients of all pairs and retained texts, read where they are kept.

    Raises:
        ValueError: they would take more than KERNEL_BYTES.
    """
    state, needed = PartialState(), len(objective.rows) * parameter_count(parts) * 4
    if needed > KERNEL_BYTES:
        raise ValueError(
            f"the kernel would hold {needed / 2**30:.1f} GiB of gradients, of "
            f"{len(objective.rows)} pairs with {parameter_count(parts)} parameters each; "
            f"{KERNEL_BYTES / 2**30:.0f} GiB is the most. Use --curvature ekfac or cg."
        )
    batches = in_batches(len(objective.rows), batch_size)
    paths = [folder / "kernel" / f"{each.start}-{each.stop}.safetensors" for each in batches]
    for index in timed(range(state.process_index, len(batches), state.num_processes), "kernel"):
        if not paths[index].exists():
            batch = objective.quick_batch(batches[index], whole=True)
            made = pseudo_gradients(objective, parts, batch)
            save_tensors(paths[index], {"pseudo": made}, {})
    state.wait_for_everyone()
    shapes = {"pseudo": (None, parameter_count(parts))}
    return torch.cat([checked_tensors(path, shapes, objective.device)["pseudo"] for path in paths])
