"""Tokens after prompts, a batch at a time: each row is drawn by its own random numbers, ended by
its own stop, and then taken out of the batch.

Knows models and ids; knows no text and no file. What a row gets does not depend on the rows beside
it (up to the rounding of the model's arithmetic).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from rahf.models.kv_cache import kept_cache, with_cache


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen, and when a response is long enough."""

    max_new_tokens: int = 512
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0  # of the likeliest tokens, as few as hold this share of the probability
    top_k: int = 0  # of the likeliest tokens, so many; 0: all
    seed: int = 0

    def __post_init__(self):
        for name, right, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)}; give {wanted}.")


def left_padded(
    rows: Sequence[list[int]], pad_token_id: int
) -> tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]:
    """Return ids and attention mask with the padding on the left, as generation needs them."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


class PrefixCache(DynamicCache):
    """Filled by a forward after which nothing is generated; what steers generation asks for it."""


class Prefix:
    """Ids that all prompts begin with, and the keys and values a model computes for them, once."""

    def __init__(self, model: nn.Module, ids: Sequence[int]):
        self.ids = list(ids)
        # Without a config every layer keeps all columns, also one with a sliding window.
        cache = PrefixCache()
        device = next(model.parameters()).device
        with torch.no_grad():
            model(
                input_ids=torch.tensor([self.ids], device=device),
                position_ids=torch.arange(len(self.ids), device=device)[None],
                logits_to_keep=1,
                **with_cache(model, cache),
            )
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]

    def cache(self, padding: Int[Tensor, " rows"]) -> DynamicCache:
        """Return the first `len(ids)` columns of left-padded rows that begin with the prefix.

        A row with 3 columns of padding gets 3 empty columns and then all but the last 3 ids of the
        prefix: those stand among the columns that are still to be computed.
        """
        source = torch.arange(len(self.ids), device=padding.device) - padding[:, None]
        source = source.clamp(min=0).to(self._layers[0][0].device)
        return DynamicCache(
            [
                tuple(states[0][:, source].transpose(0, 1) for states in layer)
                for layer in self._layers
            ]
        )


@dataclass
class Unfinished:
    """The rows of a batch that are still being written."""

    ids: Int[Tensor, "rows seq"]  # to be read by the next forward
    mask: Int[Tensor, "rows columns"]  # of all columns so far
    positions: Int[Tensor, "rows seq"]
    cache: Cache | None = None

    @classmethod
    def prompts(
        cls,
        prompts: Sequence[list[int]],
        pad_token_id: int,
        device: torch.device,
        prefix: Prefix | None,
    ) -> "Unfinished":
        """Return the prompts, of which the prefix has been read where it is no shorter than the
        padding.
        """
        ids, mask = (tensor.to(device) for tensor in left_padded(prompts, pad_token_id))
        rows = cls(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
        padding = (mask == 0).sum(1)
        if prefix is not None and int(padding.max()) < len(prefix.ids):
            rows.cache = prefix.cache(padding)
            rows.ids = ids[:, len(prefix.ids) :]
            rows.positions = rows.positions[:, len(prefix.ids) :]
        return rows

    def logits(self, model: nn.Module) -> Float[Tensor, "rows vocab"]:
        """Return the logits of each row's next token.

        Raises:
            ValueError: one of them is NaN or infinite.
        """
        output = model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            logits_to_keep=1,
            **with_cache(model, self.cache),
        )
        self.cache = kept_cache(model, output)
        logits = output.logits[:, -1]
        if not logits.amax().isfinite():  # the largest is NaN where any is
            raise ValueError(
                "the model predicts NaN or infinity, so it writes nothing: check its weights and "
                "dtype."
            )
        return logits

    def extend(self, tokens: Int[Tensor, " rows"], staying: Sequence[int]) -> None:
        """Append a token to each row and keep the rows at the places `staying`."""
        if len(staying) < len(tokens):
            kept = torch.tensor(staying, device=tokens.device)
            self.cache.batch_select_indices(kept)
            self.mask, tokens = self.mask[kept], tokens[kept]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.ids, self.positions = tokens[:, None], self.mask.sum(1, keepdim=True) - 1


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    uniforms: Float[Tensor, "rows tokens"],
    *,
    pad_token_id: int,
    ended: Callable[[list[int]], bool],
    prefix: Prefix | None = None,
    later: tuple[Sequence[int], int] = ((), 0),
) -> list[list[int]]:
    """Return the ids that `model` writes after each prompt, at most `decoding.max_new_tokens`.

    Args:
        uniforms: what chance each token is drawn by, see `next_tokens`.
        ended: whether a row's new ids are all it has to write; called after every token.
        prefix: what every prompt begins with, followed by at least one id of its own.
        later: ids that are not written among the first tokens, and how many tokens those are.
    """
    device = next(model.parameters()).device
    rows = Unfinished.prompts(prompts, pad_token_id, device, prefix)
    written: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for step in range(decoding.max_new_tokens):
        logits = rows.logits(model)
        if step < later[1]:
            logits[:, list(later[0])] = -torch.inf
        tokens = next_tokens(logits, decoding, uniforms[going, step].to(device))
        for row, token in zip(going, tokens.tolist(), strict=True):
            written[row].append(token)
        staying = [place for place, row in enumerate(going) if not ended(written[row])]
        if not staying:
            break
        rows.extend(tokens, staying)
        going = [going[place] for place in staying]
    return written


def next_tokens(
    logits: Float[Tensor, "rows vocab"], decoding: Decoding, uniforms: Float[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """Return the next token of each row: the likeliest, or a drawn one.

    The drawn token is where the cumulated probability, from the likeliest token down, passes the
    row's uniform number from [0, 1).
    """
    if decoding.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / decoding.temperature).softmax(-1)
    vocab, top_p = logits.shape[-1], decoding.top_p
    if 0 < decoding.top_k < vocab:
        return _drawn(*probabilities.topk(decoding.top_k), uniforms, top_p)
    if vocab <= 2 * LIKELIEST:
        return _drawn(*_in_order(probabilities), uniforms, top_p)
    tokens = _drawn_from_likeliest(probabilities, uniforms, top_p)
    rest = tokens < 0
    if rest.any():
        tokens[rest] = _drawn(*_in_order(probabilities[rest]), uniforms[rest], top_p)
    return tokens


LIKELIEST = 4096
"""Tokens among which nearly every draw falls: all others are put in order only where one does not,
since that takes a CPU as long as a small model takes for its prediction.
"""


def _in_order(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities and tokens from the likeliest down, equal ones by id."""
    return probabilities.sort(descending=True, stable=True)


def _drawn(ranked: Tensor, tokens: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Return a token of each row, drawn from those allowed, which are in order."""
    # In double precision: the sum of many small numbers decides which token is drawn.
    ranked = ranked.double()
    ranked /= ranked.sum(-1, keepdim=True)
    cumulated = ranked.cumsum(-1)
    # A token counts while the likelier ones have not reached the share, so the first always does.
    counted = cumulated - ranked < top_p
    reached = uniforms.double()[:, None] * (ranked * counted).sum(-1, keepdim=True)
    place = torch.searchsorted(cumulated, reached, right=True)
    last = counted.sum(-1, keepdim=True) - 1
    return tokens.gather(-1, torch.minimum(place, last)).squeeze(-1)


def _drawn_from_likeliest(probabilities: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Return what `_drawn` returns, or -1 where the likeliest tokens do not decide it."""
    values, tokens = probabilities.topk(LIKELIEST, sorted=False)
    tokens, by_id = tokens.sort()
    ranked, order = _in_order(values.gather(-1, by_id))
    # Others may be as likely as the last of them, and come before it.
    ranked = ranked.masked_fill(ranked == ranked[:, -1:], 0).double()
    whole, known = probabilities.double().sum(-1), ranked.sum(-1)
    others = torch.cat([ranked, (whole - known)[:, None]], dim=-1)
    drawn = _drawn(
        others, nn.functional.pad(tokens.gather(-1, order), (0, 1), value=-1), uniforms, top_p
    )
    return drawn if top_p == 1 else drawn.where(known >= top_p * whole, -1)


def row_uniforms(rows: Sequence[int], decoding: Decoding) -> Float[Tensor, "rows tokens"]:
    """Return the random numbers of rows, which depend only on the seed and the row's number."""
    if decoding.temperature == 0:
        return torch.zeros(len(rows), decoding.max_new_tokens, dtype=torch.float64)
    return torch.stack(
        [
            torch.from_numpy(
                np.random.default_rng([decoding.seed, row]).random(decoding.max_new_tokens)
            )
            for row in rows
        ]
    )
