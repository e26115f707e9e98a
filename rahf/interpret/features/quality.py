"""What a dictionary is worth on held-out text: sparsity, variance explained, loss kept, and how far
two training seeds agree.

Knows dictionaries and a reader of states; knows no training and no report.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from rahf.data.rows import Rows
from rahf.interpret.features.corpus import Piece
from rahf.interpret.features.dictionary import Dictionary, Origin
from rahf.interpret.features.streams import StateReader, mlp_of, ordinary
from rahf.models.adapters import frozen_pass
from rahf.models.capture import find_blocks
from rahf.models.likelihood import model_inputs, rows_for

DENSITIES = tuple(range(-6, 0))
"""Edges of the density histogram, as powers of ten of the share of tokens."""

ALIKE = 0.7
"""Cosine from which a latent counts as found again by another seed."""


CHANCE_SEED = 0x5EED
"""Of the random directions; a training with a small seed begins with others."""


class Fit(NamedTuple):
    """How a dictionary fits states."""

    tokens: int
    l0: float  # active latents per token
    explained: float  # share of the variance
    silent: float  # share of latents that are active in none of these tokens
    density: list[int]  # latents by share of tokens: below, between and above `DENSITIES`


class Kept(NamedTuple):
    """Predictions of the model when the reconstruction replaces the states.

    For states, in nats per token of the loss; for differences, of the divergence from the aligned
    model's predictions.
    """

    whole: float  # nothing replaced
    spliced: float  # the reconstruction in their place
    ablated: float  # zero in their place; for differences, the base's states
    recovered: float  # share of what the ablation costs


class Agreement(NamedTuple):
    """How far the latents of one dictionary are those of another."""

    cosine: float  # mean over latents of the largest cosine to one of the other's
    alike: float  # share of latents with a cosine of at least `ALIKE`
    chance: float  # the mean that random directions have


def fit_of(dictionary: Dictionary, batches: Sequence[Tensor]) -> Fit:
    """Return how the dictionary fits the states of all batches.

    Args:
        batches: [tokens, d_model] each.

    Raises:
        ValueError: no latent is active in any token.
    """
    tokens = sum(map(len, batches))
    mean = sum(batch.sum(0).cpu().double() for batch in batches) / tokens
    left = spread = entries = 0.0
    firings = torch.zeros(dictionary.latents, dtype=torch.long)
    for batch in batches:
        codes = dictionary.encode(batch)
        left += (batch - dictionary.decode(codes)).square().sum().item()
        spread += (batch - mean.to(batch)).square().sum().item()
        entries += len(codes.indices)
        firings += codes.firings().cpu()
    if not firings.any():
        raise ValueError(
            f"all {dictionary.latents} latents are dead: none is active in any of {tokens} tokens. "
            "The dictionary is of another layer or model, or its training failed: lower its "
            "learning rate, or give it more tokens."
        )
    edges = torch.tensor([10.0**power for power in DENSITIES])
    places = torch.bucketize(firings / tokens, edges, right=True)
    histogram = torch.bincount(places, minlength=len(edges) + 1).tolist()
    silent = (firings == 0).double().mean().item()
    return Fit(tokens, entries / tokens, 1 - left / spread, silent, histogram)


def agreement_of(first: Dictionary, second: Dictionary, signed: bool = False) -> Agreement:
    """Return how far the first dictionary's latents are among the second's.

    Args:
        signed: a direction and its opposite are alike.
    """
    mine, others = (nn.functional.normalize(each.directions, dim=1) for each in (first, second))
    generator = torch.Generator().manual_seed(CHANCE_SEED)
    drawn = torch.randn(others.shape, generator=generator).to(others)

    def nearest(to: Tensor) -> Tensor:
        parts = (part @ to.T for part in mine.split(1024))
        return torch.cat([(part.abs() if signed else part).amax(1) for part in parts])

    found = nearest(others)
    chance = nearest(nn.functional.normalize(drawn, dim=1)).mean().item()
    return Agreement(found.mean().item(), (found >= ALIKE).float().mean().item(), chance)


@torch.no_grad()
def kept_of(
    dictionaries: Mapping[Any, Dictionary],
    reader: StateReader,
    pieces: Sequence[Piece],
    *,
    massive: bool = False,
) -> dict[Any, Kept]:
    """Return what the model keeps with each reconstruction in place of the states that are read.

    Args:
        dictionaries: by any name; what does not depend on the dictionary is computed once.
        massive: massive states are replaced too.
    """
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in dictionaries}
    tokens = 0
    starts = range(0, len(pieces), reader.batch_size)
    for first in tqdm(starts, desc="measuring", unit="batch", leave=False):
        batch = _Batch.read_of(
            dictionaries.values(), reader, pieces[first : first + reader.batch_size]
        )
        whole, tokens = batch.cost(batch.whole), tokens + len(batch.whole)
        ablated = {layer: batch.cost(batch.ablated(layer)) for layer in batch.origins}
        for name, dictionary in dictionaries.items():
            spliced = batch.cost(batch.spliced(dictionary, massive))
            costs = (whole, spliced, ablated[dictionary.origin.layer])
            sums[name] += torch.stack([cost.cpu().double().sum() for cost in costs])
    return {name: _kept(*(total / tokens).tolist()) for name, total in sums.items()}


def _kept(whole: float, spliced: float, ablated: float) -> Kept:
    recovered = (ablated - spliced) / (ablated - whole) if ablated != whole else float("nan")
    return Kept(whole, spliced, ablated, recovered)


class _Batch(NamedTuple):
    """A few pieces, and what the model predicts on them."""

    reader: StateReader
    origins: dict[int, Origin]  # of one dictionary of each layer
    rows: Rows
    read: Bool[Tensor, "rows seq"]  # positions at which states are replaced
    base: dict[int, Float[Tensor, "read d_model"]]  # the base's states; none where kind is states
    whole: Float[Tensor, "tokens vocab"]  # predictions with nothing replaced

    @classmethod
    def read_of(
        cls, dictionaries: Iterable[Dictionary], reader: StateReader, pieces: Sequence[Piece]
    ) -> "_Batch":
        origins = {each.origin.layer: each.origin for each in dictionaries}
        layers, base = tuple(sorted(origins)), {}
        rows = rows_for(
            reader.model, [piece.ids for piece in pieces], [[] for _ in pieces], reader.pad_token_id
        )
        read = nn.utils.rnn.pad_sequence([piece.read for piece in pieces], batch_first=True)
        if reader.kind == "differences":
            of_base = reader._replace(kind="states", adapter=None, layers=layers)
            base = dict(zip(layers, of_base.states(pieces), strict=True))
        whole = _logprobs(reader, rows, nullcontext())
        return cls(reader, origins, rows, read, base, whole)

    def spliced(self, dictionary: Dictionary, massive: bool) -> Float[Tensor, "tokens vocab"]:
        """Return the predictions with the reconstruction in place of the states."""
        base = self.base.get(dictionary.origin.layer)

        def change(states: Tensor) -> Tensor:
            if base is not None:
                return base + dictionary.decode(dictionary.encode(states - base))
            made = dictionary.decode(dictionary.encode(states))
            return made if massive else torch.where(ordinary(states[None])[:, None], made, states)

        return self._replaced(dictionary.origin, change)

    def ablated(self, layer: int) -> Float[Tensor, "tokens vocab"]:
        """Return the predictions with zero, or the base's states, in place of the states."""
        base = self.base.get(layer)
        zeros: Callable[[Tensor], Tensor] = torch.zeros_like
        return self._replaced(self.origins[layer], zeros if base is None else lambda _: base)

    def _replaced(self, origin: Origin, change: Callable[[Tensor], Tensor]) -> Tensor:
        place = replaced_states(self.reader.model, origin, self.read, change)
        return _logprobs(self.reader, self.rows, place)

    def cost(self, logprobs: Float[Tensor, "tokens vocab"]) -> Float[Tensor, " tokens"]:
        """Return the loss, or the divergence from the aligned model, of each predicted token."""
        if not self.base:
            ids, mask = self.rows["input_ids"], self.rows["attention_mask"]
            tokens = ids[:, 1:][mask[:, 1:].bool()]
            return nn.functional.nll_loss(logprobs, tokens, reduction="none")
        return nn.functional.kl_div(logprobs, self.whole, reduction="none", log_target=True).sum(-1)


def _logprobs(
    reader: StateReader, rows: Rows, place: AbstractContextManager
) -> Float[Tensor, "tokens vocab"]:
    """Return the predictions of all tokens but the first of each piece."""
    adapted = isinstance(reader.model, PeftModel)
    speaking = frozen_pass(reader.model, reader.adapter) if adapted else nullcontext()
    with speaking, place:
        logits = reader.model(**model_inputs(rows), use_cache=False).logits[:, :-1]
    return logits[rows["attention_mask"][:, 1:].bool()].float().log_softmax(-1)


@contextmanager
def replaced_states(
    model: nn.Module,
    origin: Origin,
    read: Bool[Tensor, "rows seq"],
    change: Callable[[Float[Tensor, "tokens d_model"]], Tensor],
) -> Iterator[None]:
    """Replace the states at the positions `read` during the forwards inside."""

    def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        hidden = output if isinstance(output, Tensor) else output[0]
        changed, places = hidden.clone(), read.to(hidden.device).view(hidden.shape[:-1])
        changed[places] = change(hidden[places].float()).to(hidden.dtype)
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    block = find_blocks(model).modules[origin.layer]
    handle = (block if origin.site == "residual" else mlp_of(block)).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
