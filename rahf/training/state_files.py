"""Files of hidden states: written atomically, with a checksum of their values.

Knows tensors and files; knows no model and no batch.
"""

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which then becomes `path`; several ranks may write at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield staging
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def save_states(states: Mapping[str, Tensor], path: Path) -> None:
    """Write states with their checksum."""
    states = {name: part.cpu().contiguous() for name, part in states.items()}
    save_file(states, path, {"checksum": checksum(states)})


def checksum(states: Mapping[str, Tensor]) -> str:
    """Return the digest of the values of contiguous tensors on the CPU."""
    return digest(states[name].view(torch.uint8).numpy().data for name in sorted(states))


def checksum_in(path: Path) -> str | None:
    """Return the checksum that a file of states was written with."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("checksum")


def digest(parts: Iterable[bytes]) -> str:
    joined = hashlib.blake2b(digest_size=12)
    for part in parts:
        joined.update(part)
    return joined.hexdigest()
