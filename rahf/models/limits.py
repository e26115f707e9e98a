"""Rows of ids against the limits of a model: rows of its embedding, learned positions.

Beyond them a forward pass fails deep inside, or reads memory that is not its own. Knows models and
rows; knows no tokenizer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from rahf.data.rows import Pairs

RESPONSES = ("chosen_ids", "rejected_ids")
LEARNED_POSITIONS = ("wpe", "embed_positions", "position_embedding", "position_embeddings")
"""Names that transformers gives to an embedding of positions."""


def check_rows(model: nn.Module, rows: Pairs, pad: int) -> None:
    """Check that `model` has an embedding for every token and every position of `rows`.

    Raises:
        ValueError: a token or the padding has no row in the embedding; a row is longer than the
            learned positions.
    """
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


def learned_positions(model: nn.Module) -> int | None:
    """Return how many positions `model` has learned; None where it computes them."""
    config = model.config.get_text_config()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in LEARNED_POSITIONS:
            return getattr(config, "max_position_embeddings", module.num_embeddings)
    return None
