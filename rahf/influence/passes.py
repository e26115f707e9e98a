"""Passes over the pairs that add something up, and the files that they leave.

A pass that is stopped resumes with the batch after the last one that was kept; ranks share the
batches out. Knows objectives and files; knows no curvature.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rahf.influence.objectives import Objective
from rahf.report.progress import timed
from rahf.training.state_files import written_atomically

SAVE_SECONDS = 60.0
"""Seconds between two saves of a pass that is running."""

Sums = dict[str, Tensor]


def summed(
    objective: Objective,
    pairs: Sequence[int],
    batch_size: int,
    sums: Sums,
    add: Callable[[Sums, list[int]], None],
    path: Path,
) -> Sums:
    """Return the sums over all batches of all ranks; `path` keeps those of a pass that runs.

    Args:
        pairs: the places of those that are read.
        sums: zeros, which `add` adds the pairs in some places to.
    """
    state = PartialState()
    batches = objective.by_length(pairs, batch_size)
    mine = batches[state.process_index :: state.num_processes]
    rank = f"{state.process_index} of {state.num_processes}, {len(pairs)} pairs, "
    rank += f"{batch_size} at once, by length"
    path = path.with_name(f"{path.name}.{state.process_index}.partial")
    sums, done, saved = *_resumed(path, sums, rank, len(mine)), time.monotonic()
    for index, places in enumerate(timed(mine[done:], "curvature"), start=done + 1):
        add(sums, places)
        if time.monotonic() - saved >= SAVE_SECONDS or index == len(mine):
            save_tensors(path, sums, {"done": str(index), "rank": rank})
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
    kept = checked_tensors(path, shapes, next(iter(sums.values())).device)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("rank") != rank:  # other batches: from the beginning
        return sums, 0
    done = metadata.get("done", "")
    if not done.isdecimal() or int(done) > batches:
        raise ValueError(f"{path} holds {done!r} of {batches} batches: delete it to fit again.")
    return {name: each.to(sums[name].dtype) for name, each in kept.items()}, int(done)


def save_tensors(path: Path, tensors: Sums, metadata: dict[str, str]) -> None:
    with written_atomically(path) as staging:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, staging, metadata)


def checked_tensors(
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
