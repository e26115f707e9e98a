"""The curvature of a training, fitted in passes over its pairs and kept in files.

    FOLDER/key.json                the adapter, base and pairs that the factors belong to
    FOLDER/ekfac.safetensors       eigenbases and moments of each matrix; ekfac-2000 of 2,000 pairs
    FOLDER/kernel/17.safetensors   pseudo-gradients of the pairs of one batch

EK-FAC takes two passes over at most `fit_pairs` pairs, the kernel one over all. A pass that is
stopped resumes with the batch after the last one that was kept; ranks share the batches out. Knows
objectives and files.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rahf.artifacts import differences, identity_of, read_object, write_json
from rahf.influence.formula import Eigenbasis, rotate
from rahf.influence.gradients import (
    Part,
    check_finite_gradients,
    consumed,
    merged,
    parameter_count,
    row_gradients,
    weights_of_parts,
)
from rahf.influence.objectives import Batch, Objective, in_batches
from rahf.influence.trained import Subject
from rahf.interpret.features.bases import fingerprint_of
from rahf.report.progress import timed
from rahf.training.state_files import written_atomically
from rahf.training.target_cache import digest_of_rows

KEY_FILE = "key.json"
EKFAC_FILE = "ekfac.safetensors"
FIT_PAIRS = 2000
"""Pairs that EK-FAC's factors are fitted to: means over pairs, which a sample has as well."""

SAVE_SECONDS = 60.0
"""Seconds between two saves of a pass that is running."""

KERNEL_BYTES = 8 * 2**30
"""Bytes of pseudo-gradients that the kernel may hold."""

Sums = dict[str, Tensor]


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
    path = folder / KEY_FILE
    if not path.exists():
        if PartialState().is_main_process:
            write_json(path, key)
    elif changed := differences(read_object(path, f"Delete {folder} to fit again."), key):
        raise ValueError(
            f"{folder} holds factors of another adapter, base or set of pairs:\n{changed}"
            "Give another --factors folder, or delete that one."
        )


def summed(
    objective: Objective,
    pairs: Sequence[int],
    batch_size: int,
    sums: Sums,
    add: Callable[[Sums, Batch], None],
    path: Path,
) -> Sums:
    """Return the sums over all batches of all ranks; `path` keeps those of a pass that runs.

    Args:
        pairs: the places of those that are read.
        sums: zeros, which `add` adds a batch to.
    """
    state = PartialState()
    batches = [pairs[each.start : each.stop] for each in in_batches(len(pairs), batch_size)]
    mine = batches[state.process_index :: state.num_processes]
    rank = f"{state.process_index} of {state.num_processes}, {len(pairs)} pairs, "
    rank += f"{batch_size} at once"
    path = path.with_name(f"{path.name}.{state.process_index}.partial")
    sums, done, saved = *_resumed(path, sums, rank, len(mine)), time.monotonic()
    for index, places in enumerate(timed(mine[done:], "curvature"), start=done + 1):
        add(sums, objective.batch(places, whole=True))
        if time.monotonic() - saved >= SAVE_SECONDS or index == len(mine):
            _save(path, sums, {"done": str(index), "rank": rank})
            saved = time.monotonic()
    return reduce(sums, reduction="sum")


def _resumed(path: Path, sums: Sums, rank: str, batches: int) -> tuple[Sums, int]:
    """Return the sums that a stopped pass has kept, and the batches that they hold.

    What they belong to is compared by `check_key`, of the folder that they are in.

    Raises:
        ValueError: the file is damaged, or holds sums that no pass can have left.
    """
    if not path.exists():
        return sums, 0
    shapes = {name: tuple(each.shape) for name, each in sums.items()}
    kept = _checked(path, shapes, next(iter(sums.values())).device)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("rank") != rank:  # other batches: from the beginning
        return sums, 0
    done = metadata.get("done", "")
    if not done.isdecimal() or int(done) > batches:
        raise ValueError(f"{path} holds {done!r} of {batches} batches: delete it to fit again.")
    return {name: each.to(sums[name].dtype) for name, each in kept.items()}, int(done)


def _save(path: Path, tensors: Sums, metadata: dict[str, str]) -> None:
    with written_atomically(path) as staging:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, staging, metadata)


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

    def add(sums: Sums, batch: Batch) -> None:
        def gather(part: Part, inputs: Tensor, gradients: Tensor) -> None:
            for name, each in (("inputs", inputs), ("outputs", gradients)):
                check_finite_gradients(each.flatten(1), _row_names(batch))
                tokens = each.flatten(0, 1)
                sums[f"{part.name}.{name}"] += (tokens.T @ tokens).double()

        with consumed(parts, batch.mask, gather):
            loss = objective.pseudo(batch)
            torch.autograd.grad(loss, weights_of_parts(parts), allow_unused=True)

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

    def add(sums: Sums, batch: Batch) -> None:
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


def pseudo_gradients(
    objective: Objective, parts: Sequence[Part], batch: Batch
) -> Float[Tensor, "examples parameters"]:
    """Return the pseudo-gradient of each pair, then of each retained text."""
    rows = row_gradients(parts, batch.mask, lambda: objective.pseudo(batch))
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
        _save(path, tensors, {"parts": json.dumps([part.name for part in parts])})
    state.wait_for_everyone()
    for left in path.parent.glob(f"*.{state.process_index}.partial"):
        left.unlink()


def _read_factors(path: Path, parts: Sequence[Part], device: torch.device) -> list[Eigenbasis]:
    shapes: dict[str, tuple[int | None, ...]] = {}
    for part in parts:
        outputs, inputs = part.shape
        sizes = ((outputs, outputs), (inputs, inputs), (outputs, inputs))
        for name, size in zip(Eigenbasis._fields, sizes, strict=True):
            shapes[f"{part.name}.{name}"] = size
    tensors = _checked(path, shapes, device)
    return [
        Eigenbasis(*(tensors[f"{part.name}.{name}"] for name in Eigenbasis._fields))
        for part in parts
    ]


def _checked(
    path: Path, shapes: Mapping[str, tuple[int | None, ...]], device: torch.device
) -> dict[str, Tensor]:
    """Return the tensors of a file of factors.

    Args:
        shapes: of each tensor; None where any size will do.

    Raises:
        ValueError: the file cannot be read, or holds other tensors than these, values that are not
            finite, or negative moments.
    """
    try:
        found = load_file(path, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to fit again.") from error
    wrong = next((name for name in sorted({*shapes} ^ {*found})), None)
    problem = wrong and f"has {wrong} missing or too much"
    for name, tensor in found.items() if problem is None else ():
        sizes = zip(shapes[name], tensor.shape, strict=False)
        if tensor.ndim != len(shapes[name]) or any(a not in (None, b) for a, b in sizes):
            problem = f"holds {name} of shape {tuple(tensor.shape)}, not {shapes[name]}"
        elif not tensor.isfinite().all():
            problem = f"holds values of {name} that are not finite"
        elif name.endswith(".moments") and (tensor < 0).any():
            problem = f"holds negative values of {name}, a mean of squares"
    if problem is not None:
        raise ValueError(f"{path} {problem}: delete it to fit again.")
    return found


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
            batch = objective.batch(batches[index], whole=True)
            made = pseudo_gradients(objective, parts, batch)
            _save(paths[index], {"pseudo": made}, {})
    state.wait_for_everyone()
    shapes = {"pseudo": (None, parameter_count(parts))}
    return torch.cat([_checked(path, shapes, objective.device)["pseudo"] for path in paths])
