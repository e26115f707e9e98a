"""Features that split when a dictionary grows: directions of one size beside those of another.

Knows directions; knows no model and no file.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rahf.interpret.features.dictionary import Dictionary

ROWS_AT_ONCE = 512


class Splitting(NamedTuple):
    """How the latents of a smaller dictionary are found in a larger one."""

    children: Int[Tensor, " small"]  # latents of the larger one that are nearest to this one
    nearest: Float[Tensor, " large"]  # cosine of each latent of the larger one with its nearest
    parent: Int[Tensor, " large"]  # that nearest latent; -1: none is near enough

    def shares(self) -> dict[str, float]:
        """Return shares of the smaller one's latents, and of the larger one's that are new."""
        count = self.children
        return {
            "lost": (count == 0).double().mean().item(),
            "kept": (count == 1).double().mean().item(),
            "split": (count > 1).double().mean().item(),
            "new": (self.parent < 0).double().mean().item(),
        }


def check_sizes(small: Dictionary, large: Dictionary) -> None:
    """Refuse dictionaries between which features do not split.

    Raises:
        ValueError: another layer, site, kind or model; the second is not the larger one.
    """
    places = [(each.origin.layer, each.origin.site, each.origin.kind) for each in (small, large)]
    prints = [each.origin.fingerprint for each in (small, large)]
    if places[0] != places[1] or (None not in prints and prints[0] != prints[1]):
        raise ValueError(
            f"the dictionaries are of layer {places[0][0]} ({places[0][1]}, {places[0][2]}) of "
            f"{small.origin.base} and of layer {places[1][0]} ({places[1][1]}, {places[1][2]}) of "
            f"{large.origin.base}: splitting compares two dictionaries of one layer."
        )
    if large.latents <= small.latents:
        raise ValueError(
            f"--larger has {large.latents} features, the other {small.latents}: exchange them."
        )


def splitting(
    small: Float[Tensor, "small d_model"],
    large: Float[Tensor, "large d_large"],
    threshold: float,
    *,
    signed: bool = True,
) -> Splitting:
    """Give each direction of the larger dictionary to the nearest of the smaller one.

    Args:
        threshold: least cosine at which it counts as a child.
        signed: whether opposite directions are different; false for codes of either sign.

    Raises:
        ValueError: the dictionaries are of different widths.
    """
    if small.shape[1] != large.shape[1]:
        raise ValueError(
            f"dictionaries of {small.shape[1]} and of {large.shape[1]} dimensions are of different "
            "models: splitting compares dictionaries of one model and layer."
        )
    units, parts = nn.functional.normalize(small.float(), dim=1), []
    for rows in large.split(ROWS_AT_ONCE):
        cosines = nn.functional.normalize(rows.float(), dim=1) @ units.T
        parts.append((cosines if signed else cosines.abs()).max(1))
    nearest = torch.cat([part.values for part in parts])
    parent = torch.cat([part.indices for part in parts]).masked_fill(nearest < threshold, -1)
    children = torch.bincount(parent[parent >= 0], minlength=len(small))
    return Splitting(children, nearest, parent)


def splitting_figures(found: Splitting, top: int = 20) -> dict[str, Any]:
    """Return the shares, and the features that split into the most."""
    order = found.children.argsort(descending=True, stable=True)[:top].tolist()
    return {
        "small": len(found.children),
        "large": len(found.parent),
        "shares": found.shares(),
        "most_split": [
            {"feature": latent, "into": (found.parent == latent).nonzero().squeeze(1).tolist()}
            for latent in order
            if found.children[latent] > 1
        ],
    }
