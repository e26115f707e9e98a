"""What a dictionary of hidden states is: sparse codes of states, and directions that decode them.

A latent is an index of a dictionary; its direction is a row of the decoder. Codes are held as the
few latents that are active in each token and are never made dense. Knows no model, no file and no
way of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor, nn

Site = Literal["residual", "mlp"]
"""Output of a decoder block, or of the MLP inside of it before it is added to the residual."""

Kind = Literal["states", "differences"]
"""Hidden states of one model, or per token those of the aligned model minus those of its base."""


class SparseCodes(NamedTuple):
    """The active latents of tokens, token after token (compressed sparse rows)."""

    offsets: Int64[Tensor, " tokens_and_one"]  # where the entries of each token begin, and the end
    indices: Int32[Tensor, " entries"]  # latent of each entry, ascending in a token
    values: Float[Tensor, " entries"]  # activation of the latent, never zero
    latents: int  # of the dictionary

    @property
    def tokens(self) -> int:
        return len(self.offsets) - 1

    def counts(self) -> Int64[Tensor, " tokens"]:
        """Return the number of active latents of each token, its L0."""
        return self.offsets.diff()

    def owners(self) -> Int64[Tensor, " entries"]:
        """Return the token of each entry."""
        tokens = torch.arange(self.tokens, device=self.offsets.device)
        return tokens.repeat_interleave(self.counts(), output_size=len(self.indices))

    def firings(self) -> Int64[Tensor, " latents"]:
        """Return the number of tokens in which each latent is active."""
        return torch.bincount(self.indices, minlength=self.latents)

    def part(self, first: int, last: int) -> "SparseCodes":
        """Return the codes of the tokens from `first` up to and without `last`."""
        offsets = self.offsets[first : last + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        return SparseCodes(
            offsets - offsets[0], self.indices[entries], self.values[entries], self.latents
        )


@dataclass(frozen=True)
class Origin:
    """What a dictionary was trained on."""

    base: str  # name or folder of the model
    fingerprint: str | None  # of the base's weights (see `bases`); None: the file does not hold it
    layer: int  # decoder block, counted from 0
    site: Site
    kind: Kind = "states"
    seed: int | None = None
    adapter: str | None = None  # adapter that was on, or whose differences they are


@runtime_checkable  # by the tests' checks of annotations
class Dictionary(Protocol):
    """Codes of hidden states, and hidden states of codes."""

    origin: Origin
    d_model: int
    latents: int
    directions: Float[Tensor, "latents d_model"]  # rows of the decoder as they are, any norm
    bias: Float[Tensor, " d_model"]  # what no active latent decodes to

    def encode(self, hidden: Float[Tensor, "tokens d_model"]) -> SparseCodes: ...

    def decode(self, codes: SparseCodes) -> Float[Tensor, "tokens d_model"]: ...


def decoded(
    codes: SparseCodes,
    directions: Float[Tensor, "latents d_model"],
    bias: Float[Tensor, " d_model"],
) -> Float[Tensor, "tokens d_model"]:
    """Return the sum of each token's directions times their values, and the bias."""
    sums = nn.functional.embedding_bag(
        codes.indices.long(),
        directions,
        codes.offsets,
        mode="sum",
        per_sample_weights=codes.values.to(directions.dtype),
        include_last_offset=True,
    )
    return sums + bias


def codes_of_chosen(
    indices: Int[Tensor, "tokens chosen"], values: Float[Tensor, "tokens chosen"], latents: int
) -> SparseCodes:
    """Return codes from a fixed number of chosen latents per token; a value of 0 is no entry."""
    indices, order = indices.sort(dim=1)
    values = values.gather(1, order)
    active = values != 0
    offsets = nn.functional.pad(active.sum(1).cumsum(0), (1, 0))
    return SparseCodes(offsets, indices[active].int(), values[active], latents)


def codes_of_active(activations: Float[Tensor, "tokens latents"]) -> SparseCodes:
    """Return codes of a few tokens from all their activations, of which most are zero."""
    active = activations != 0
    offsets = nn.functional.pad(active.sum(1).cumsum(0), (1, 0))
    indices = active.nonzero()[:, 1].int()
    return SparseCodes(offsets, indices, activations[active], activations.shape[1])


def joined(parts: Sequence[SparseCodes]) -> SparseCodes:
    """Return the codes of consecutive tokens as one.

    Raises:
        ValueError: there are no parts, or they are of dictionaries of different sizes.
    """
    sizes = {part.latents for part in parts}
    if len(sizes) != 1:
        raise ValueError(
            f"{len(parts)} parts of sparse codes, of dictionaries with {sorted(sizes)} latents, "
            "cannot be joined: give at least one, all of one dictionary."
        )
    starts = torch.tensor([0, *(len(part.indices) for part in parts)]).cumsum(0).tolist()
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
    return SparseCodes(
        torch.cat([*offsets, parts[-1].offsets[-1:] + starts[-2]]),
        torch.cat([part.indices for part in parts]),
        torch.cat([part.values for part in parts]),
        sizes.pop(),
    )
