"""One vector per layer: frozen, saved, loaded, and the arithmetic of such vectors.

`fitters.py` fits them. Knows no model.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rahf.artifacts import staging_of

FILE_NAME = "directions.safetensors"


@dataclass(frozen=True)
class Directions:
    """A stored shift: what `positive - negative` is on average, per layer, before it is multiplied
    by alpha.

    Raises:
        ValueError: layers that are no block numbers, each once; a vector that is not finite.
    """

    layers: tuple[int, ...]
    vectors: Float[Tensor, "layers d_model"]  # in units of the residual stream
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.layers)) < len(self.layers) or min(self.layers, default=0) < 0:
            raise ValueError(f"layers {list(self.layers)} are not block numbers from 0, each once")
        finite = self.vectors.float().norm(dim=1).isfinite().tolist()
        wrong = [layer for layer, right in zip(self.layers, finite, strict=True) if not right]
        if wrong:
            raise ValueError(
                f"directions of layers {wrong} are not finite (NaN or infinity, also of their "
                "length): fit them again, in float32 where the model overflows in its own format."
            )

    def select(self, layers: tuple[int, ...]) -> Float[Tensor, "layers d_model"]:
        """Return vectors of the given layers.

        Raises:
            ValueError: a layer has no vector here.
        """
        missing = [layer for layer in layers if layer not in self.layers]
        if missing:
            raise ValueError(
                f"the directions hold layers {list(self.layers)}, but target_layers requests "
                f"{missing} as well. Fit directions for those layers or take them out of "
                "target_layers."
            )
        return self.vectors[[self.layers.index(layer) for layer in layers]]

    def only(self, layers: tuple[int, ...]) -> "Directions":
        """Return the same directions on some of their layers."""
        return Directions(tuple(layers), self.select(tuple(layers)), self.metadata)

    def __add__(self, other: "Directions") -> "Directions":
        return self._with(other, self.vectors + self._same(other))

    def __sub__(self, other: "Directions") -> "Directions":
        return self._with(other, self.vectors - self._same(other))

    def __mul__(self, factor: int | float) -> "Directions":
        return replace(self, vectors=self.vectors * factor)

    __rmul__ = __mul__

    def __neg__(self) -> "Directions":
        return self * -1.0

    def cosine(self, other: "Directions") -> Float[Tensor, " layers"]:
        """Return the cosine to the other vector of each layer; 0 where one of them is zero."""
        return nn.functional.cosine_similarity(self.vectors, self._same(other), dim=-1)

    def project(self, onto: "Directions") -> "Directions":
        """Return the part along `onto`, layer by layer; what is left is `self -
        projection`.
        """
        axes = nn.functional.normalize(self._same(onto), dim=-1)
        along = (self.vectors * axes).sum(-1, keepdim=True)
        return self._with(onto, along * axes)

    def increments(self) -> "Directions":
        """Return each layer's vector minus that of the layer before it among these.

        What is added to the residual stream stays there: added by steering, the increments shift
        the state after each layer by about its own vector, where the vectors themselves would pile
        up.
        """
        before = torch.cat([torch.zeros_like(self.vectors[:1]), self.vectors[:-1]])
        return replace(self, vectors=self.vectors - before)

    def _same(self, other: "Directions") -> Tensor:
        if other.layers != self.layers:
            raise ValueError(
                f"directions of layers {list(self.layers)} and of layers {list(other.layers)} do "
                "not go together; take the shared ones of both with only(layers)."
            )
        other.check_width(self.vectors.shape[1])
        return other.vectors

    def _with(self, other: "Directions", vectors: Tensor) -> "Directions":
        """Return the result of both: what their metadata agree on is true of it as well."""
        shared = {
            key: text for key, text in self.metadata.items() if other.metadata.get(key) == text
        }
        return Directions(self.layers, vectors, shared)

    def fingerprint(self) -> str:
        """Return the SHA-256 of layers and vectors; the metadata does not count."""
        digest = hashlib.sha256(repr(self.layers).encode())
        digest.update(self.vectors.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_moving(self) -> None:
        """Refuse vectors that change nothing.

        Raises:
            ValueError: the length of every vector is zero, as far as float32 holds it.
        """
        if not self.vectors.float().norm(dim=1).any():
            raise ValueError("all its vectors are zero and change nothing: fit them again.")

    def check_width(self, d_model: int) -> None:
        """Refuse directions of another model, as far as their width gives them away.

        Raises:
            ValueError: the vectors are not `d_model` wide.
        """
        width = self.vectors.shape[1]
        if width != d_model:
            raise ValueError(
                f"the directions have {width} dimensions, the model's hidden states {d_model}: "
                "they were fitted on another model. Fit them on this one."
            )

    def check_model(self, d_model: int, depth: int) -> None:
        """Refuse directions that a model has no room for.

        Raises:
            ValueError: the vectors are not `d_model` wide, or a layer is beyond `depth` blocks.
        """
        self.check_width(d_model)
        if max(self.layers) >= depth:
            raise ValueError(
                f"the directions hold layer {max(self.layers)}, the model {depth} blocks, counted "
                "from 0: they were fitted on another model."
            )

    def save(self, folder: str | Path) -> Path:
        """Write `directions.safetensors` in `folder`, beside and then renamed, so that a file there
        is always complete.
        """
        path = Path(folder) / FILE_NAME
        tensors = {
            f"layer.{layer}": vector.contiguous()
            for layer, vector in zip(self.layers, self.vectors, strict=True)
        }
        staging = staging_of(path)
        save_file(tensors, staging, {"format": "pt", "rahf": json.dumps(dict(self.metadata))})
        order_metadata(staging)
        staging.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Directions":
        """Read a file written by `save`, or the one in the folder `path`.

        Raises:
            ValueError: the file is damaged, holds no `layer.N` vectors of one width, or zeros
                only, or holds layers beyond the depth that it was fitted at.
        """
        path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise ValueError(
                f"{path}: there is no such file; give the file of rahf directions, or its folder."
            )
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = json.loads((file.metadata() or {}).get("rahf", "{}"))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from None
        _check_metadata(path, metadata)
        named = {int(n[6:]): tensors[n] for n in tensors if re.fullmatch(r"layer\.\d{1,9}", n)}
        if not named:
            raise ValueError(
                f"{path} holds no tensors named 'layer.N'; it is not a file of rahf directions."
            )
        layers = tuple(sorted(named))
        shapes = {tuple(vector.shape) for vector in named.values()}
        if len(shapes) > 1 or len(min(shapes)) != 1:
            raise ValueError(f"{path}: its layers should be vectors of one width, not {shapes}")
        try:
            vectors = torch.stack([named[layer] for layer in layers]).float()
            directions = cls(layers, vectors, metadata)
            directions.check_moving()
            if "depth" in metadata:
                directions.check_model(vectors.shape[1], int(metadata["depth"]))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return directions


def _check_metadata(path: Path, metadata: Any) -> None:
    """Refuse what `save` does not write: anything but texts by name, and an invalid depth."""
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{path}: its metadata are not texts by name; fit the directions again.")
    if not re.fullmatch(r"\d{1,9}", metadata.get("depth", "1")):
        raise ValueError(
            f"{path}: its metadata have depth: {metadata['depth']!r}, which is not a number of "
            "blocks; fit the directions again."
        )


def check_finite_states(
    states: Float[Tensor, "layers samples d_model"], layers: Sequence[int], rows: Sequence[Any]
) -> None:
    """Refuse states that no direction can be fitted to.

    Args:
        rows: the name of the data row of each sample.

    Raises:
        ValueError: a state is not finite; names its row and its layer.
    """
    finite = states.isfinite().all(-1)
    if finite.all():
        return
    layer, sample = (~finite).nonzero()[0].tolist()
    raise ValueError(
        f"row {rows[sample]}: its hidden states in layer {layers[layer]} are not finite (NaN or "
        "infinity): load the model with dtype: float32, or leave the row out."
    )


def order_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file into a fixed order, so that equal files are equal."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])
