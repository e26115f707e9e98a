"""Protected directions: what an alignment must not move along, as one basis per layer.

Several directions are one space: their order, lengths and signs do not count. Knows files and
vectors; knows no model.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rahf.directions.steering import spanned
from rahf.directions.vectors import Directions

VANISHED = 1e-3
"""A shift of which at most this share is left outside the protected space cannot be asked for."""


def load_protected(
    folders: Sequence[str | Path], layers: tuple[int, ...], d_model: int
) -> Float[Tensor, "layers basis d_model"]:
    """Return an orthonormal basis of the protected space of each layer; rows of zeros fill it up.

    Raises:
        ValueError: a folder whose directions have another width, or lack one of the layers.
    """
    vectors = []
    for folder in folders:
        directions = Directions.load(folder)
        try:
            directions.check_width(d_model)
            vectors.append(directions.select(layers))
        except ValueError as error:
            raise ValueError(f"protect: {folder}: {error}") from None
    bases = [spanned(of_layer) for of_layer in torch.stack(vectors, 1)]
    most = max(map(len, bases))
    return torch.stack([nn.functional.pad(basis, (0, 0, 0, most - len(basis))) for basis in bases])


def check_left(
    shift: Float[Tensor, "layers d_model"], left: Float[Tensor, "layers d_model"]
) -> None:
    """Refuse a shift that is inside the protected space.

    Args:
        left: what of the shift is outside.

    Raises:
        ValueError: nothing is left in any layer.
    """
    if (left.norm(dim=-1) <= VANISHED * shift.norm(dim=-1)).all():
        raise ValueError(
            "protect: the shift is along the protected directions only, so that nothing is left of "
            "it: take out of protect the direction that is aligned."
        )
