"""Hidden states of the frozen views, kept on disk: computed once, read in later epochs and by later
runs that differ in alpha, weights, rate or seed. Where a term reads predictions, which are not
kept, the views run on every response, and only retained texts are read.

    FOLDER/KEY/key.json             what the states were made with; KEY is its digest
    FOLDER/KEY/0/17-chosen.safetensors     reference [layers, tokens, d_model] and shift, unscaled
    FOLDER/KEY/retained/3.safetensors

A file is written beside and renamed, so that ranks, runs and a restart after a kill may share a
folder. The cache knows batches and hidden states and is given a function for what is missing;
only `open_cache` reads how a training is set up.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from rahf.alignment import Alignment
from rahf.artifacts import identity_of, read_json
from rahf.data.contrast import Batch, ContrastCollator, retained_name, without_retained
from rahf.recipe.method_options import MethodOptions
from rahf.report.progress import timed
from rahf.training.state_files import checksum, checksum_in, digest, save_states, written_atomically
from rahf.views import Frozen

logger = logging.getLogger(__name__)
GIB = 2**30
KEY_FILE = "key.json"
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Relative difference of states that other batches, or another kernel, may make."""

HALF_ROUNDING = 0.05


class TargetCache:
    """The states of one training, in a folder that others may use too.

    Args:
        folder: the folder of all keys.
        key: all that the states follow from.
        needed: bytes of the states of all items.
        responses: whether the states of responses are kept, beside those of retained texts.
        retained: names of all retained texts, and what computes their states, in that order.

    Raises:
        ValueError: the folder's disk has too little room, or its record is not that of the key.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        needed: int,
        responses: bool = True,
        retained: tuple[Sequence[str], Callable[[], Iterator[Tensor]]] = ((), lambda: iter(())),
    ):
        key = json.loads(json.dumps(key))
        self.folder = folder / digest([json.dumps(key, sort_keys=True).encode()])
        record = self.folder / KEY_FILE
        if record.exists() and read_json(record) != key:
            raise ValueError(
                f"{record} is not the record that its folder is named by: the states there are of "
                "another training. Delete that folder."
            )
        _check_room(folder, missing=max(0, needed - _bytes_in(self.folder)))
        if not record.exists():
            with written_atomically(record) as staging:
                staging.write_text(json.dumps(key, indent=2))
        self._responses, self._retained = responses, retained
        self._verified = self._retained_verified = self._full = self._begun = False
        self._checked: set[Path] = set()

    def read_or_compute(self, batch: Batch, compute: Callable[[Batch], Frozen]) -> Frozen:
        """Return the states of `batch` under the frozen views, read where all of them are known.

        Retained texts recur within an epoch; the first call has computed them. All ranks read
        or all compute, since a sharded model runs on all of them or on none.
        The first states that are read are computed too and compared.

        Raises:
            ValueError: the states that are kept are not those of this model.
        """
        if not self._begun:
            self._begun = True
            self._begin(batch["row"].device)
        known = self._read(batch, 0) if self._responses else None
        if not _everywhere(known is not None, batch["row"].device):
            made = self._compute(batch, compute)
            self._write(batch, made)
            return made
        if not self._verified:
            self._verify(known, compute(batch))
            self._verified = True
        return known

    def _begin(self, device: torch.device) -> None:
        """Compute and keep the states of the retained texts, unless all are known to all ranks."""
        names, compute = self._retained
        paths = [self._path(name) for name in names]
        if _everywhere(all(path.exists() for path in paths), device):
            return
        self._retained_verified = not any(path.exists() for path in paths)
        for path, states in zip(paths, compute(), strict=True):
            self._keep(path, {"reference": states})

    def _compute(self, batch: Batch, compute: Callable[[Batch], Frozen]) -> Frozen:
        retained = self._read(batch, len(batch["row"]))
        if retained is not None and self._retained_verified:
            made = compute(without_retained(batch))
            return made._replace(reference=torch.cat([made.reference, retained.reference], dim=1))
        made = compute(batch)
        if retained is not None:
            now = made.reference[:, batch["aligned_responses"] :]
            self._verify(retained, Frozen(now, None))
            self._retained_verified = True
        return made

    def _read(self, batch: Batch, start: int) -> Frozen | None:
        """Return states of the rows from `start`; None where there are none or not all."""
        paths, device = self._paths(batch)[start:], str(batch["row"].device)
        if not (paths and all(path.exists() for path in paths)):
            return None
        items = [self._load(path, device) for path in paths]
        for path, item, tokens in zip(paths, items, _tokens_of(batch)[start:], strict=True):
            if item["reference"].shape[1] != tokens:
                raise ValueError(
                    f"{path} has the states of {item['reference'].shape[1]} tokens, and {tokens} "
                    f"are aligned: delete {self.folder}."
                )
        reference = torch.cat([item["reference"] for item in items], dim=1)
        shifts = [item["shift"] for item in items if "shift" in item]
        return Frozen(reference, torch.cat(shifts, dim=1) if shifts else None)

    def _load(self, path: Path, device: str) -> dict[str, Tensor]:
        try:
            states = load_file(path)
            if path not in self._checked and checksum_in(path) != checksum(states):
                raise ValueError(
                    f"{path} is damaged: its checksum does not match. Delete {self.folder}."
                )
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete {self.folder}.") from error
        self._checked.add(path)  # checked once: a training reads it in every epoch
        return {name: part.to(device) for name, part in states.items()}

    def _write(self, batch: Batch, made: Frozen) -> None:
        tokens, responses = _tokens_of(batch), len(batch["row"])
        references = made.reference.split(tokens, dim=1)
        shifts: Sequence[Tensor | None] = [None] * len(tokens)
        if made.shift is not None:
            shifts = [*made.shift.split(tokens[:responses], dim=1), *shifts[responses:]]
        parts = zip(self._paths(batch), references, shifts, strict=True)
        for path, reference, shift in islice(parts, 0 if self._responses else responses, None):
            self._keep(path, {"reference": reference} | ({} if shift is None else {"shift": shift}))

    def _keep(self, path: Path, states: Mapping[str, Tensor]) -> None:
        if self._full or path.exists():
            return
        try:
            with written_atomically(path) as staging:
                save_states(states, staging)
        except OSError as error:
            # A training is worth more than its cache.
            logger.warning("%s cannot be written (%s): no more states are kept", path, error)
            self._full = True

    def _verify(self, known: Frozen, made: Frozen) -> None:
        """Compare what was read to what the model computes now."""
        allowed = ROUNDING.get(made.reference.dtype, HALF_ROUNDING)
        # Shifts are small differences of states: rounding is measured by the size of these.
        size = made.reference.float().norm()
        for now, kept in ((made.reference, known.reference), (made.shift, known.shift)):
            off = 0.0 if now is None else ((kept - now).float().norm() / size).item()
            if not off <= allowed:
                raise ValueError(
                    f"The states in {self.folder} are {off:.2g} of their size away from those that "
                    f"the model has now, more than rounding makes ({allowed}): they are of other "
                    "weights. Delete that folder."
                )

    def _paths(self, batch: Batch) -> list[Path]:
        return [self._path(name) for name in batch["items"]]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _tokens_of(batch: Batch) -> list[int]:
    """Return the number of aligned tokens of each row of the block `reference`."""
    owner = batch["reference"]["aligned_owner"]
    return torch.bincount(owner, minlength=len(batch["items"])).tolist()


def _everywhere(known: bool, device: torch.device) -> bool:
    """Return whether it holds on every rank."""
    if not torch.distributed.is_initialized():
        return known
    flag = torch.tensor(int(known), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _check_room(folder: Path, missing: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise ValueError(
            f"target_cache: the states of this training take {missing / GIB:.2f} GiB more in "
            f"{folder}, whose disk has {free / GIB:.2f} GiB free: give a folder on another disk, "
            "delete what this one keeps of other trainings, align fewer layers or tokens "
            "(target_layers, max_response_tokens), set shift: mean, or omit target_cache."
        )


def open_cache(
    alignment: Alignment,
    teachers: Mapping[str, str | Path | PreTrainedModel],
    rows: Dataset,
    retained: Sequence[list[int]],
    autocast: str,
    collator: ContrastCollator,
) -> TargetCache:
    """Return the cache of a training in the folder that its options name.

    Args:
        teachers: adapter folders or full models by name, as the alignment was built with.
        rows: tokenised pairs that are trained on.
        retained: ids of the texts of the retain term.
        autocast: dtype that passes run in where it is not the weights' own.
        collator: what makes the training's batches.
    """
    options, base = alignment.options, alignment.model.get_base_model()
    views = alignment.frozen_views.views
    both = views.positive is not None  # a shift of every token
    key = {
        "files": "with checksums",  # of earlier versions: without
        "base": weights_of(base),
        "dtype": f"{base.dtype} {autocast}",
        "loading": str(getattr(base.config, "quantization_config", None)),
        "teachers": {name: weights_of(teachers[name]) for name in views.teachers()},
        "views": [view and list(view) for view in views],
        "layers": alignment.layers,
        **{name: getattr(options, name) for name in DECIDING},
        "rows": digest_of_rows(rows),
        "retained": digest([json.dumps([list(text) for text in retained]).encode()]),
    }
    states, responses = sum(map(len, retained)), not options.compares_predictions
    if responses:
        states += _aligned_tokens(rows, options) * (2 if both else 1)
    width = base.config.get_text_config().hidden_size
    needed = states * len(alignment.layers) * width * base.dtype.itemsize
    names = [retained_name(text) for text in range(len(retained))]
    texts = (names, partial(_retained_states, alignment, collator, retained))
    return TargetCache(Path(options.target_cache), key, needed, responses, texts)


TEXTS_AT_ONCE = 8


def _retained_states(
    alignment: Alignment, collator: ContrastCollator, texts: Sequence[list[int]]
) -> Iterator[Float[Tensor, "layers tokens d_model"]]:
    """Yield the states of the reference on each retained text."""
    device = next(alignment.model.parameters()).device
    for start in timed(range(0, len(texts), TEXTS_AT_ONCE), "retained texts"):
        together = texts[start : start + TEXTS_AT_ONCE]
        rows = send_to_device(collator.retained_rows(together), device)
        yield from alignment.frozen_views.retained(rows).split(
            [len(text) for text in together], dim=1
        )


DECIDING = ("response_source", "max_response_tokens", "positions", "tail_tokens")
"""Options that select which states of which responses are aligned."""


def weights_of(model: str | Path | PreTrainedModel) -> list[str]:
    """Return what identifies weights: their content, wherever it is, or a name of the Hub."""
    if isinstance(model, PreTrainedModel):
        commit = getattr(model.config, "_commit_hash", None)
        return [str(commit), *weights_of(model.name_or_path)]
    return [identity_of(model) or str(model)]


def _aligned_tokens(rows: Dataset, options: MethodOptions) -> int:
    """Return the number of aligned tokens of all responses, at most."""
    source = options.response_source
    sides = ("chosen_ids", "rejected_ids") if source == "both" else (f"{source}_ids",)
    tail = options.tail_tokens if options.positions == "response_and_tail" else 0
    parts = [lists.value_lengths().to_numpy() for side in sides for lists in _lists(rows, side)]
    lengths = np.concatenate(parts)
    return int(np.minimum(lengths, options.max_response_tokens).sum() + tail * len(lengths))


def digest_of_rows(rows: Dataset) -> str:
    """Return the digest of all ids of tokenised pairs, in their order."""
    columns = sorted(name for name in rows.column_names if name.endswith("_ids"))
    return digest(
        part.to_numpy().tobytes()
        for name in columns
        for lists in _lists(rows, name)
        for part in (lists.value_lengths(), lists.flatten())
    )


def _lists(rows: Dataset, column: str) -> Iterator[pa.ListArray]:
    """Yield a column of ids in parts."""
    for part in rows.select_columns(column).with_format("arrow").iter(batch_size=10_000):
        yield part[column].combine_chunks()
