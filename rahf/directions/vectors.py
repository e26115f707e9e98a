"""One vector per layer: frozen, saved, loaded, and the arithmetic of such vectors.

`fitters.py` fits them. Knows no model.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE_NAME = "directions.safetensors"


@dataclass(frozen=True)
class Directions:
    """A stored shift: what `positive - negative` is on average, per layer, before it is multiplied
    by alpha.
    """

    layers: tuple[int, ...]
    vectors: Float[Tensor, "layers d_model"]  # in units of the residual stream
    metadata: Mapping[str, str] = field(default_factory=dict)

    def select(self, layers: tuple[int, ...]) -> Float[Tensor, "layers d_model"]:
        """Vectors of the given layers.

        Raises:
            ValueError: a layer has no vector here.
        """
        missing = [layer for layer in layers if layer not in self.layers]
        if missing:
            raise ValueError(
                f"the directions hold layers {list(self.layers)}, but target_layers asks for "
                f"{missing} as well. Fit directions for those layers or take them out of "
                "target_layers."
            )
        return self.vectors[[self.layers.index(layer) for layer in layers]]

    def only(self, layers: tuple[int, ...]) -> "Directions":
        """The same directions on some of their layers."""
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
        """Cosine to the other vector of each layer; 0 where one of them is zero."""
        return nn.functional.cosine_similarity(self.vectors, self._same(other), dim=-1)

    def project(self, onto: "Directions") -> "Directions":
        """The part that lies along `onto`, layer by layer; what is left is `self - projection`."""
        axes = nn.functional.normalize(self._same(onto), dim=-1)
        along = (self.vectors * axes).sum(-1, keepdim=True)
        return self._with(onto, along * axes)

    def increments(self) -> "Directions":
        """Each layer's vector minus that of the layer before it among these.

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
        """Result of both: what their metadata agree on is true of it as well."""
        shared = {
            key: text for key, text in self.metadata.items() if other.metadata.get(key) == text
        }
        return Directions(self.layers, vectors, shared)

    def fingerprint(self) -> str:
        """SHA-256 of layers and vectors, whatever the metadata says."""
        digest = hashlib.sha256(repr(self.layers).encode())
        digest.update(self.vectors.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check(self, source: str | Path) -> None:
        """Refuse vectors that no fit gives.

        Raises:
            ValueError: no layers or impossible ones; another number of vectors; inf or nan.
        """
        depth = self.metadata.get("depth", "")
        most = int(depth) if depth.isdecimal() else None
        wrong = [at for at in self.layers if at < 0 or (most is not None and at >= most)]
        shape = tuple(self.vectors.shape)
        if wrong or len(set(self.layers)) < len(self.layers):
            told = f"; the model that they were fitted on has {most} layers" if most else ""
            problem = f"layers {list(self.layers)} are negative, too high or given twice{told}"
        elif len(shape) != 2 or shape[0] != len(self.layers) or 0 in shape:
            problem = f"vectors of shape {shape} are not one vector for each of {self.layers}"
        elif not torch.isfinite(self.vectors).all():
            finite = torch.isfinite(self.vectors).all(-1)
            bad = [layer for layer, good in zip(self.layers, finite, strict=True) if not good]
            problem = f"the vectors of layers {bad} hold inf or nan"
        else:
            return
        raise ValueError(f"{source}: {problem}. Fit the directions again.")

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

    def save(self, folder: str | Path) -> Path:
        """Write `directions.safetensors` in `folder`, beside and then renamed, so that a file there
        is always whole.
        """
        path = Path(folder) / FILE_NAME
        self.check(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"layer.{layer}": vector.contiguous()
            for layer, vector in zip(self.layers, self.vectors, strict=True)
        }
        staging = path.with_suffix(".partial")
        save_file(tensors, staging, {"format": "pt", "rahf": json.dumps(dict(self.metadata))})
        order_metadata(staging)
        staging.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Directions":
        """Read a file written by `save`, or the one in the folder `path`.

        Raises:
            ValueError: the file holds no `layer.N` vectors, or vectors that `check` refuses.
        """
        path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith("layer.")]  # noqa: SIM118
            names.sort(key=lambda name: int(name.removeprefix("layer.")))
            if not names:
                raise ValueError(
                    f"{path} holds no tensors named 'layer.N'; it is not a file of rahf directions."
                )
            found = [file.get_tensor(name) for name in names]
            if len({tuple(vector.shape) for vector in found}) > 1:
                raise ValueError(f"{path}: the vectors have several widths. Fit them again.")
            vectors = torch.stack(found).float()
            metadata = json.loads((file.metadata() or {}).get("rahf", "{}"))
        directions = cls(tuple(int(name[6:]) for name in names), vectors, metadata)
        directions.check(path)
        return directions


def order_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file into a fixed order, so that equal files are equal."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])
