"""A TopK dictionary: each token is the sum of the `k` latents that fit it best (Gao et al. 2024,
arXiv 2406.04093, section 2), and the gradients that train it.

Gradients are written out, so that nothing of the size [tokens, latents] is kept or multiplied but
the encoder's activations, a few tokens at a time. Knows no model, no file and no optimiser.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from rahf.interpret.features.dictionary import Origin, SparseCodes, codes_of_chosen, decoded

AT_ONCE = 2**25
"""Activations (tokens times latents) that are computed together."""


GROUP = 16
"""Latents whose maximum is ranked first."""


class Weights(NamedTuple):
    """What a TopK dictionary learns."""

    encoder: Float[Tensor, "latents d_model"]
    encoder_bias: Float[Tensor, " latents"]
    directions: Float[Tensor, "latents d_model"]
    bias: Float[Tensor, " d_model"]


class Chosen(NamedTuple):
    """The latents that a dictionary chose for each token, in no order."""

    indices: Int[Tensor, "tokens k"]
    values: Float[Tensor, "tokens k"]


def chosen_latents(
    hidden: Float[Tensor, "tokens d_model"], weights: Weights, k: int, signed: bool
) -> Chosen:
    """Return the `k` largest activations of each token; negative ones become 0.

    Args:
        signed: choose the activations of the largest size, and keep their sign (AbsTopK).
    """
    parts = []
    for part in hidden.split(max(1, AT_ONCE // len(weights.encoder))):
        activations = torch.addmm(weights.encoder_bias, part - weights.bias, weights.encoder.T)
        sizes = activations.abs() if signed else activations
        indices = largest(sizes, k)
        values = activations.gather(1, indices)
        parts.append((indices, values if signed else values.relu()))
    return Chosen(*(torch.cat(field) for field in zip(*parts, strict=True)))


def largest(sizes: Float[Tensor, "tokens latents"], k: int) -> Int[Tensor, "tokens k"]:
    """Return the places of the `k` largest sizes of each token, in no order.

    The `k` groups of latents with the largest maxima hold all of them, so only these are ranked.
    """
    groups = sizes.shape[1] // GROUP
    if sizes.shape[1] % GROUP or groups < k:
        return sizes.topk(k, dim=1, sorted=False).indices
    grouped = sizes.unflatten(1, (GROUP, groups))
    best = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    members = grouped.gather(2, best[:, None].expand(-1, GROUP, -1)).flatten(1)
    places = members.topk(k, dim=1, sorted=False).indices
    return best.gather(1, places % k) + places // k * groups


@dataclass(frozen=True)
class TopKDictionary:
    """A trained TopK dictionary; its directions have norm 1."""

    origin: Origin
    weights: Weights
    k: int  # active latents per token, at most
    signed: bool = False  # latents may be negative

    @property
    def d_model(self) -> int:
        return self.weights.directions.shape[1]

    @property
    def latents(self) -> int:
        return self.weights.directions.shape[0]

    @property
    def directions(self) -> Float[Tensor, "latents d_model"]:
        return self.weights.directions

    @property
    def bias(self) -> Float[Tensor, " d_model"]:
        return self.weights.bias

    def encode(self, hidden: Float[Tensor, "tokens d_model"]) -> SparseCodes:
        chosen = chosen_latents(hidden.to(self.bias), self.weights, self.k, self.signed)
        return codes_of_chosen(*chosen, self.latents)

    def decode(self, codes: SparseCodes) -> Float[Tensor, "tokens d_model"]:
        return decoded(codes, self.directions, self.bias)


class Step(NamedTuple):
    """Gradients of a batch's loss, and what is reported of it."""

    gradients: Weights
    unexplained: Float[Tensor, ""]  # mean squared error per value, before the auxiliary loss
    active: Bool[Tensor, " latents"]  # latents that any token has


class Auxiliary(NamedTuple):
    """The auxiliary loss: latents that no longer fire learn what others leave (appendix A.2)."""

    dead: Int64[Tensor, " dead"]
    k: int  # dead latents a token
    weight: float


def training_step(
    hidden: Float[Tensor, "tokens d_model"],
    weights: Weights,
    k: int,
    signed: bool,
    auxiliary: Auxiliary | None = None,
) -> Step:
    """Return the gradients of the mean squared error per value of a batch."""
    chosen = chosen_latents(hidden, weights, k, signed)
    centred = hidden - weights.bias
    fit = _fit(chosen, weights, centred, centred, signed)
    encoder, encoder_bias, directions = fit.encoder, fit.encoder_bias, fit.directions
    # The encoder reads hidden - bias, so the bias learns from both ends.
    bias = fit.error.sum(0) * fit.per_value - encoder_bias @ weights.encoder
    if auxiliary is not None and len(auxiliary.dead):
        rows, k_dead = auxiliary.dead, min(auxiliary.k, len(auxiliary.dead))
        dead = Weights(*(part[rows] for part in weights[:3]), weights.bias)
        spare = chosen_latents(hidden, dead, k_dead, signed)
        left = _fit(spare, dead, centred, -fit.error, signed)
        for whole, part in zip((encoder, encoder_bias, directions), left[:3], strict=True):
            whole.index_add_(0, rows, part, alpha=auxiliary.weight)
    active = torch.zeros(len(encoder), dtype=torch.bool, device=hidden.device)
    active[chosen.indices[chosen.values != 0]] = True
    gradients = Weights(encoder, encoder_bias, directions, bias)
    return Step(gradients, fit.error.square().mean(), active)


class _Fit(NamedTuple):
    encoder: Tensor
    encoder_bias: Tensor
    directions: Tensor
    error: Float[Tensor, "tokens d_model"]  # what the chosen latents make, minus the target
    per_value: float  # factor of the error in the loss's gradient


def _fit(chosen: Chosen, weights: Weights, centred: Tensor, target: Tensor, signed: bool) -> _Fit:
    """Return the gradients of mean((chosen latents decoded - target)^2), entry by entry.

    Sums over a token's latents are bags of directions; sums over a latent's tokens are bags of
    tokens, for which the entries are sorted by latent.
    """
    tokens, k = chosen.indices.shape
    latents, indices = len(weights.encoder), chosen.indices.flatten()
    offsets = torch.arange(0, tokens * k + 1, k, device=indices.device)
    with torch.enable_grad():
        values = chosen.values.flatten().requires_grad_()
        made = _bags(indices, weights.directions, offsets, values)
    error, per_value = made.detach() - target, 2 / target.numel()
    pull = error * per_value
    (upstream,) = torch.autograd.grad(made, values, pull)
    values = values.detach()
    if not signed:
        upstream = upstream * (values > 0)
    order = indices.argsort(stable=True)
    owners, counts = order // k, torch.bincount(indices, minlength=latents)
    by_latent = nn.functional.pad(counts.cumsum(0), (1, 0))
    return _Fit(
        encoder=_bags(owners, centred, by_latent, upstream[order]),
        encoder_bias=torch.zeros_like(weights.encoder_bias).index_add_(0, indices, upstream),
        directions=_bags(owners, pull, by_latent, values[order]),
        error=error,
        per_value=per_value,
    )


def _bags(members: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums of rows, one for each bag of members."""
    return nn.functional.embedding_bag(
        members, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
