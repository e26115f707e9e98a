"""Rows of ids against the limits of a model: rows of its embedding, learned positions, RoPE.

Beyond them a forward pass fails deep inside, reads memory that is not its own, or changes the
states of other rows. Knows models and
rows; knows no tokenizer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from rahf.data.rows import Pairs

RESPONSES = ("chosen_ids", "rejected_ids")
LEARNED_POSITIONS = ("wpe", "embed_positions", "position_embedding", "position_embeddings")
"""Names that transformers gives to an embedding of positions."""


def check_rows(model: nn.Module, rows: Pairs, pad: int) -> None:
    """Check that `model` has an embedding for every token and every position of `rows`.

    Raises:
        ValueError: a token or the padding has no row in the embedding; a row is longer than the
            learned positions, or changes the RoPE of its neighbours.
    """
    rope = rope_by_length(model)
    known, positions = model.get_input_embeddings().num_embeddings, learned_positions(model)
    if pad >= known:
        raise ValueError(
            f"the padding has the id {pad}, but the model embeds {known} tokens (0 to {known - 1}):"
            f" {_REMEDY}"
        )
    for row in rows:
        _check_tokens(row, known)
        if positions is not None and _length(row) > positions:
            raise ValueError(
                f"row {row['row']}: prompt and response have {_length(row)} tokens, but the model "
                f"has learned {positions} positions. Set max_length: {positions} or less."
            )
        if rope is not None and _length(row) > rope.positions:
            raise ValueError(
                f"row {row['row']}: prompt and response have {_length(row)} tokens. The RoPE of "
                f"this model ({rope.kind}) has other frequencies for an entire batch that goes "
                f"beyond its {rope.positions} original positions, so that short rows would depend "
                f"on their neighbours. Set max_length: {rope.positions} or less."
            )


_REMEDY = (
    "the tokenizer has grown and the model has not. Give the model's own tokenizer, or save the "
    "model with resize_token_embeddings(len(tokenizer))."
)


def _check_tokens(row: Mapping[str, Any], known: int) -> None:
    for name, ids in row.items():
        if name.endswith("_ids") and max(ids, default=0) >= known:
            raise ValueError(
                f"row {row['row']}: {name} has the token {max(ids)}, but the model embeds {known} "
                f"tokens (0 to {known - 1}): {_REMEDY}"
            )


def _length(row: Mapping[str, Sequence[int]]) -> int:
    """Return the tokens of the longest prompt with the longest response."""
    prompts = [len(ids) for name, ids in row.items() if name.endswith("prompt_ids")]
    return max(prompts) + max(len(row[name]) for name in RESPONSES)


class RopeByLength(NamedTuple):
    """A RoPE whose frequencies depend on the longest row of a batch."""

    kind: str
    positions: int  # the longest row with the original frequencies


def rope_by_length(model: nn.Module) -> RopeByLength | None:
    """Return the RoPE of `model` that depends on the length of a batch; None where it has none.

    Where layer types have a RoPE each, that with the fewest positions.
    """
    config = model.config.get_text_config()
    given = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    found = []
    for rope in nested or [given]:
        kind = rope.get("rope_type") or "default"
        if kind == "longrope":
            found.append(RopeByLength(kind, rope["original_max_position_embeddings"]))
        elif "dynamic" in kind:
            found.append(RopeByLength(kind, config.max_position_embeddings))
    return min(found, key=lambda rope: rope.positions, default=None)


def learned_positions(model: nn.Module) -> int | None:
    """Return how many positions `model` has learned; None where it computes them."""
    config = model.config.get_text_config()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in LEARNED_POSITIONS:
            return getattr(config, "max_position_embeddings", module.num_embeddings)
    return None
