"""Queries from files: completions, held-out pairs, projections on stored directions."""

from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rahf.data.prompts import prompt_text, read_responses, refuse_rendered
from rahf.data.response_ids import tokenize_responses
from rahf.data.sources import load_pairs
from rahf.data.tokenization import tokenize_pairs
from rahf.directions.vectors import Directions
from rahf.influence.queries import (
    Direction,
    Query,
    Values,
    log_probabilities,
    log_probability,
    margin,
    projections,
)

NAMED = 80
"""Characters of a prompt in the name of its query."""


class Questions(NamedTuple):
    """Queries of one kind."""

    queries: list[Query]
    values: Values
    unit: str


def of_responses(
    path: Path, tokenizer: PreTrainedTokenizerBase, template: str | None, limit: int | None
) -> Questions:
    """Return a query for the log-probability of each response of a file."""
    given = read_responses(path)[:limit]
    chats = [each.messages for each in given]
    refuse_rendered(path, chats, tokenizer, template)
    ids = tokenize_responses(chats, [each.text for each in given], tokenizer, template)
    queries = [
        log_probability(_name(number, prompt_text(chat)), prompt, response)
        for number, (chat, (prompt, response)) in enumerate(zip(chats, ids, strict=True))
    ]
    return Questions(queries, log_probabilities, "nats")


def pair_rows(
    name: str,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    limit: int | None,
) -> Dataset:
    """Return held-out pairs, tokenised."""
    pairs = load_pairs(name, split=split)
    pairs = pairs.select(range(min(len(pairs), limit or len(pairs))))
    return tokenize_pairs(pairs, tokenizer, chat_template=template)[0]


def of_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Questions:
    """Return a query for the margin of each tokenised pair."""
    queries = [
        margin(
            _name(row["row"], tokenizer.decode(row["prompt_ids"], skip_special_tokens=True)),
            row["prompt_ids"],
            row["chosen_ids"],
            row["rejected_ids"],
        )
        for row in rows
    ]
    return Questions(queries, log_probabilities, "nats")


def projected(questions: Questions, path: Path, layer: int | None) -> Questions:
    """Return the same responses with the projection of their hidden states as value.

    Args:
        layer: of the stored directions; None: their last one.
    """
    directions = Directions.load(path)
    chosen = directions.layers[-1] if layer is None else layer
    unit = torch.nn.functional.normalize(directions.select((chosen,))[0].float(), dim=0)
    return Questions(questions.queries, projections(Direction(chosen, unit)), "units of the state")


def _name(number: int, text: str) -> str:
    line = " ".join(text.split())
    return f"{number}: {line[:NAMED]}" + ("..." if len(line) > NAMED else "")
