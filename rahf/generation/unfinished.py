"""Rows that are being written: padded on the left, with what the model keeps of what it has read.

Knows models and ids; knows neither how a token is chosen nor when a row ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from rahf.models.kv_cache import kept_cache, only_recurrent, with_cache


def left_padded(
    rows: Sequence[list[int]], pad_token_id: int
) -> tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]:
    """Return ids and attention mask with the padding on the left, as generation needs them."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


LAST = torch.tensor([-1])
"""The last column. As a slice its states are not contiguous, and torch then copies the weights of a
frozen head once a row; as an index they are."""


class PrefixCache(DynamicCache):
    """Filled by a forward after which nothing is generated; what steers generation reads it."""


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
                logits_to_keep=LAST,
                **with_cache(model, cache),
            )
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]

    def cache(self, padding: Int[Tensor, " rows"]) -> DynamicCache:
        """Return the first `len(ids)` columns of left-padded rows that begin with the prefix.

        A row with 3 columns of padding gets 3 empty columns and then all but the last 3 ids of the
        prefix: those are among the columns that are still to be computed.
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
    """The rows of a batch that are still being written.

    Without a cache (`caches`), every forward reads the rows from their first id; they have no
    padding then.
    """

    ids: Int[Tensor, "rows seq"]  # to be read by the next forward
    mask: Int[Tensor, "rows columns"]  # of all columns so far
    positions: Int[Tensor, "rows seq"]
    cache: Cache | None = None
    caches: bool = True

    @classmethod
    def prompts(
        cls,
        prompts: Sequence[list[int]],
        pad_token_id: int,
        device: torch.device,
        prefix: Prefix | None = None,
        caches: bool = True,
    ) -> "Unfinished":
        """Return the prompts, of which the prefix has been read where it is no shorter than the
        padding.
        """
        ids, mask = (tensor.to(device) for tensor in left_padded(prompts, pad_token_id))
        rows = cls(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), caches=caches)
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
        logits = self.forward(model)
        if not logits.amax().isfinite():  # the largest is NaN where any is
            raise ValueError(
                "the model predicts NaN or infinity, so it writes nothing: check its weights, its "
                "dtype, and the strengths that it is steered with."
            )
        return logits

    def forward(self, model: nn.Module) -> Float[Tensor, "rows vocab"]:
        """Run the model on the ids that it has not read; return the logits after the last."""
        if not self.caches:
            return model(input_ids=self.ids, logits_to_keep=LAST, use_cache=False).logits[:, -1]
        # A layer that holds no columns has left the padding behind; mamba multiplies by any mask.
        mask = None if self.cache is not None and only_recurrent(self.cache) else self.mask
        output = model(
            input_ids=self.ids,
            attention_mask=mask,
            position_ids=self.positions,
            logits_to_keep=LAST,
            **with_cache(model, self.cache),
        )
        self.cache = kept_cache(model, output)
        return output.logits[:, -1]

    def extend(self, tokens: Int[Tensor, " rows"], staying: Sequence[int]) -> None:
        """Append a token to each row and keep the rows at the places `staying`."""
        if len(staying) < len(tokens):
            kept = torch.tensor(staying, device=tokens.device)
            if self.caches:
                self.cache.reorder_cache(kept)
            self.ids, self.mask, tokens = self.ids[kept], self.mask[kept], tokens[kept]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.mask.sum(1, keepdim=True) - 1
        read = [] if self.caches else [self.ids]
        self.ids = torch.cat([*read, tokens[:, None]], dim=1)
