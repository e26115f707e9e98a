"""Sparse codes of a text on disk: shards of safetensors, written as they come and read one by one.

A token takes about 8 bytes for each active latent, so a million tokens with 32 active of 16,384
latents are 0.26 GB. Nothing is ever made dense, and one shard at a time is in memory. Knows codes
and files; knows no dictionary and no model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rahf.artifacts import read_object, staging_of, write_json
from rahf.interpret.features.dictionary import SparseCodes, joined

INDEX_FILE, PROGRESS_FILE = "codes.json", "codes.partial.json"
SHARD = 2**23
"""Entries (active latents of tokens) of a shard, at least: about 64 MB."""

CODES = ("offsets", "indices", "values")


class Shard(NamedTuple):
    """Consecutive tokens of a text."""

    first: int  # place of its first token in the text
    codes: SparseCodes
    beside: dict[str, Tensor]  # what is kept of each token beside its codes, by name


class Firings(NamedTuple):
    """Where some latents are active."""

    tokens: Int64[Tensor, " firings"]  # places in the text, ascending
    latents: Int64[Tensor, " firings"]
    values: Float[Tensor, " firings"]


class CodeWriter:
    """Writes codes in the order of the text; the folder can be read after `finish`.

    A writer that was killed resumes after its last `save`.

    Args:
        latents: of the dictionary.
        shard: entries from which a shard is written.
    """

    def __init__(self, folder: Path, latents: int, shard: int = SHARD):
        self.folder, self.latents, self.shard = folder, latents, shard
        self._parts: list[SparseCodes] = []
        self._beside: list[Mapping[str, Tensor]] = []
        self._entries = 0
        self._shards: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, codes: SparseCodes, **beside: Tensor) -> None:
        """Add the codes of the next tokens.

        Args:
            beside: values kept with each token, such as its id; the same names each time.
        """
        assert codes.latents == self.latents, "codes of another dictionary"
        assert all(len(values) == codes.tokens for values in beside.values())
        self._parts.append(SparseCodes(*(part.cpu() for part in codes[:3]), codes.latents))
        self._beside.append({name: values.cpu() for name, values in beside.items()})
        self._entries += len(codes.indices)
        if self._entries >= self.shard:
            self._write()

    def save(self, done: int, **described: Any) -> None:
        """Write what is left, and how much of the text is done, so that a killed run resumes.

        Args:
            done: parts of the text, as the caller counts them.
        """
        if self._parts:
            self._write()
        write_json(self.folder / PROGRESS_FILE, self._index(described) | {"done": done})

    def resume(self, **described: Any) -> int:
        """Continue after what a killed writer of the same codes has saved, and return how much of
        the text that is.
        """
        path = self.folder / PROGRESS_FILE
        found = read_object(path, shards=list, done=int) if path.is_file() else {}
        if found.get("described") != described or found["latents"] != self.latents:
            return 0
        self._shards = found["shards"]
        return found["done"]

    def finish(self, **described: Any) -> None:
        """Write what is left, and the index with what describes the codes.

        Raises:
            ValueError: no codes were added.
        """
        if self._parts:
            self._write()
        if not self._shards:
            raise ValueError(f"{self.folder}: the text has no tokens, so there are no codes.")
        write_json(self.folder / INDEX_FILE, self._index(described))
        (self.folder / PROGRESS_FILE).unlink(missing_ok=True)

    def _index(self, described: Mapping[str, Any]) -> dict[str, Any]:
        return {"latents": self.latents, "shards": self._shards, "described": described}

    def _write(self) -> None:
        codes, name = joined(self._parts), f"codes-{len(self._shards):05d}.safetensors"
        tensors = dict(zip(CODES, codes[:3], strict=True))
        for key in self._beside[0]:
            tensors[f"beside.{key}"] = torch.cat([part[key] for part in self._beside])
        staging = staging_of(self.folder / name)
        save_file(tensors, staging)
        staging.replace(self.folder / name)
        self._shards.append({"file": name, "tokens": codes.tokens, "entries": len(codes.indices)})
        self._parts, self._beside, self._entries = [], [], 0


class CodeStore:
    """Codes that a `CodeWriter` wrote.

    Raises:
        ValueError: the folder holds no codes, or a shard is missing.
    """

    def __init__(self, folder: Path):
        if not (folder / INDEX_FILE).is_file():
            raise ValueError(f"{folder} holds no codes: its {INDEX_FILE} is missing.")
        index = read_object(folder / INDEX_FILE, latents=int, described=dict, shards=list)
        self.folder, self.latents = folder, index["latents"]
        self.described: dict[str, Any] = index["described"]
        self._shards = index["shards"]
        for shard in self._shards:
            if not (folder / shard["file"]).is_file():
                raise ValueError(f"{folder / shard['file']} is missing: write the codes again.")

    @property
    def tokens(self) -> int:
        return sum(shard["tokens"] for shard in self._shards)

    @property
    def entries(self) -> int:
        return sum(shard["entries"] for shard in self._shards)

    def __iter__(self) -> Iterator[Shard]:
        """Yield the shards in the order of the text."""
        first = 0
        for shard in self._shards:
            codes, beside = self._read(self.folder / shard["file"])
            yield Shard(first, codes, beside)
            first += shard["tokens"]

    def counts(self) -> Int64[Tensor, " latents"]:
        """Return the number of tokens in which each latent is active."""
        counts = torch.zeros(self.latents, dtype=torch.long)
        for shard in self:
            counts += shard.codes.firings()
        return counts

    def firings(self, latents: Sequence[int]) -> Firings:
        """Return where the given latents are active, in one pass over the shards."""
        wanted = torch.zeros(self.latents, dtype=torch.bool)
        wanted[torch.tensor(latents, dtype=torch.long)] = True
        found = []
        for first, codes, _ in self:
            entries = wanted[codes.indices].nonzero().squeeze(1)
            tokens = torch.searchsorted(codes.offsets, entries, right=True) - 1 + first
            found.append((tokens, codes.indices[entries].long(), codes.values[entries]))
        return Firings(*(torch.cat(field) for field in zip(*found, strict=True)))

    def _read(self, path: Path) -> tuple[SparseCodes, dict[str, Tensor]]:
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged ({error}): write the codes again.") from None
        codes = SparseCodes(*(tensors.pop(name) for name in CODES), self.latents)
        return codes, {name.removeprefix("beside."): values for name, values in tensors.items()}
