"""Several dictionaries trained on one stream of hidden states: layers, sizes and seeds in one pass.

All coders read the same batches. A training that is killed resumes at the last checkpoint and ends
with the same weights. Knows the stream and the coders; knows no quality and no result folder.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from rahf.artifacts import staging_of
from rahf.interpret.features.coder import Coder
from rahf.interpret.features.dictionary import Kind
from rahf.interpret.features.streams import BlockReader, Schedule, StateReader, ordinary

BATCH = 2048
"""Tokens of a training step."""

DEAD_AFTER = 0.1
"""Share of the training's tokens after which a silent latent is dead."""

CHECKPOINT_EVERY = 300.0
"""Seconds between two checkpoints, at least."""


class Name(NamedTuple):
    """Which of the dictionaries of a training it is."""

    layer: int
    latents: int
    seed: int

    def __str__(self) -> str:
        return f"layer{self.layer}_latents{self.latents}_seed{self.seed}"


@dataclass(frozen=True)
class Settings:
    """How dictionaries are trained."""

    latents: tuple[int, ...]  # sizes
    k: int  # active latents per token
    seeds: tuple[int, ...]
    signed: bool = False  # latents may be negative
    massive: bool = False  # states of massive norm are read too
    learning_rate: float = 1e-3
    batch_tokens: int = BATCH

    def read(
        self, states: Float[Tensor, "layers tokens d_model"], kind: Kind
    ) -> Float[Tensor, "layers read d_model"]:
        """Return the states without massive ones; differences between models have none."""
        return states if self.massive or kind == "differences" else states[:, ordinary(states)]

    def names(self, layers: tuple[int, ...]) -> list[Name]:
        return [
            Name(layer, size, seed)
            for layer in layers
            for size in self.latents
            for seed in self.seeds
        ]


class Trained(NamedTuple):
    """What a training leaves."""

    coders: dict[Name, Coder]
    log: list[dict[str, Any]]  # one record a block
    dead_after: int  # tokens


def train_coders(
    reader: StateReader,
    plan: Schedule,
    settings: Settings,
    checkpoint: Path,
    *,
    checkpoint_every: float = CHECKPOINT_EVERY,
) -> Trained:
    """Train all dictionaries, or resume; the checkpoint is left beside the result.

    Raises:
        ValueError: the loss or a hidden state is not finite.
    """
    total = sum(plan.tokens)
    dead_after = round(DEAD_AFTER * total)
    coders, log = resumed(checkpoint, settings, reader.device) if checkpoint.exists() else ({}, [])
    read_block = BlockReader(reader, plan)
    before, saved = sum(plan.tokens[: len(log)]), monotonic()
    options = {"unit": " tokens", "unit_scale": True, "desc": "features"}
    with tqdm(total=total, initial=before, **options) as bar:
        for block in range(len(log), len(plan.blocks)):
            start = monotonic()
            states = settings.read(read_block(block, bar.update), reader.kind)
            coders = coders or begun(states, reader.layers, settings)
            read = monotonic()
            left = _train_on_block(coders, states, plan, block, settings, dead_after)
            record = {"tokens": sum(plan.tokens[: block + 1]), "unexplained": left}
            record["dead"] = {str(n): int((c.silent > dead_after).sum()) for n, c in coders.items()}
            record |= {"reading_seconds": read - start, "training_seconds": monotonic() - read}
            log.append(record)
            bar.set_postfix(unexplained=f"{max(left.values()):.3f}", refresh=False)
            if monotonic() - saved >= checkpoint_every or block + 1 == len(plan.blocks):
                keep(checkpoint, coders, log)
                saved = monotonic()
    return Trained(coders, log, dead_after)


def begun(
    states: Float[Tensor, "layers tokens d_model"], layers: tuple[int, ...], settings: Settings
) -> dict[Name, Coder]:
    """Return fresh coders, centred and scaled on the first states."""
    return {
        name: Coder.begin(
            states[layers.index(name.layer)],
            name.latents,
            settings.k,
            settings.signed,
            seed=name.seed,
            learning_rate=settings.learning_rate,
        )
        for name in settings.names(layers)
    }


def _train_on_block(
    coders: Mapping[Name, Coder],
    states: Float[Tensor, "layers tokens d_model"],
    plan: Schedule,
    block: int,
    settings: Settings,
    dead_after: int,
) -> dict[str, float]:
    """Train on the batches of a block; return the mean share left unexplained, by name."""
    left: dict[str, list[float]] = {str(name): [] for name in coders}
    total, done = sum(plan.tokens), sum(plan.tokens[:block])
    rows = {layer: row for row, layer in enumerate(dict.fromkeys(n.layer for n in coders))}
    for batch in plan.batches(block, states, settings.batch_tokens):
        for name, coder in coders.items():
            part = coder.step(batch[rows[name.layer]], done / total, dead_after=dead_after)
            if not math.isfinite(part):
                raise ValueError(
                    f"{name}: the loss is {part} after {done:,} tokens. Lower the learning rate "
                    f"({settings.learning_rate:g})."
                )
            left[str(name)].append(part)
        done += batch.shape[1]
    return {name: sum(parts) / len(parts) for name, parts in left.items()}


def keep(path: Path, coders: Mapping[Name, Coder], log: list[dict[str, Any]]) -> None:
    """Write the checkpoint beside and rename, so that the one there is always complete."""
    tensors = {
        f"{name}/{key}": tensor.contiguous()
        for name, coder in coders.items()
        for key, tensor in coder.state().items()
    }
    staging = staging_of(path)
    names = [list(name) for name in coders]
    save_file(tensors, staging, {"rahf": json.dumps({"names": names, "log": log})})
    staging.replace(path)


def resumed(
    path: Path, settings: Settings, device: torch.device
) -> tuple[dict[Name, Coder], list[dict[str, Any]]]:
    """Return the coders and the log of a checkpoint.

    Raises:
        ValueError: the file is not a checkpoint, or holds a value that is not finite.
    """
    again = f"Delete {path} to begin anew."
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            kept = json.loads((file.metadata() or {})["rahf"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        names, log = [Name(*entry) for entry in kept["names"]], kept["log"]
        coders = {name: _restored(name, tensors, settings) for name in names}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not a checkpoint ({error!r}). {again}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds values that are not finite. {again}")
    return coders, log


def _restored(name: Name, tensors: Mapping[str, Tensor], settings: Settings) -> Coder:
    start = f"{name}/"
    state = {key.removeprefix(start): tensors[key] for key in tensors if key.startswith(start)}
    return Coder.restored(state, settings.k, settings.signed, settings.learning_rate)
