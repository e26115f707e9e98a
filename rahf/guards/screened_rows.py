"""The rows that are screened: what a training would move towards, and what from.

Preference pairs move from the rejected to the chosen response; rows of supervised fine-tuning from
the base's own answer to the response. Knows files, texts and ids; knows no direction.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from rahf.artifacts import expanded
from rahf.data.messages import Message, as_messages, check_type
from rahf.data.prompts import chat_prompt_form, prompt_text, refuse_rendered, response_of
from rahf.data.records import read_records
from rahf.data.response_ids import tokenize_responses
from rahf.data.sources import FILE_SUFFIXES, load_pairs
from rahf.generation.answers import generate
from rahf.guards.projections import Ids

PREFERENCES, SFT = "preferences", "sft"


class Row(NamedTuple):
    """One row of the data, as texts."""

    number: int  # in the data, from 0
    messages: list[Message]
    first: str  # what is moved towards
    second: str | None  # what is moved from; None: the base's own answer


class Screened(NamedTuple):
    """The rows of a data set that are read."""

    kind: str  # PREFERENCES or SFT
    rows: list[Row]
    found: int  # rows of the data that can be used

    def groups(self) -> np.ndarray:
        """Return the number of each row's prompt."""
        return np.unique([prompt_text(row.messages) for row in self.rows], return_inverse=True)[1]


def read_rows(name: str, split: str, most: int, seed: int) -> Screened:
    """Return at most `most` rows, drawn by the seed, in the order of the data.

    Raises:
        ValueError: no usable row; a record without a prompt or a response.
    """
    kind = SFT if _holds_responses(name) else PREFERENCES
    rows = _responses(name) if kind == SFT else _pairs(name, split)
    if not rows:
        raise ValueError(f"{name} holds no usable row: there is nothing to screen.")
    drawn = np.random.default_rng(seed).permutation(len(rows))[:most]
    return Screened(kind, [rows[index] for index in np.sort(drawn)], len(rows))


def _holds_responses(name: str) -> bool:
    """Return whether a local file has records without pairs; other sources hold pairs."""
    path = expanded(name)
    if not path.is_file() or not name.endswith(FILE_SUFFIXES) or name.endswith(".parquet"):
        return False
    _, record = next(iter(read_records(path)), ("", {"chosen": None}))
    return not {"chosen", "rejected"} & set(record)


def _pairs(name: str, split: str) -> list[Row]:
    pairs = load_pairs(name, split=split)
    return [
        Row(row["row"], row["prompt"], row["chosen"], row["rejected"])
        for row in pairs
        if row["dropped"] is None
    ]


def _responses(name: str) -> list[Row]:
    found = []
    for number, (place, record) in enumerate(read_records(expanded(name))):
        given = response_of(as_response(record, place), place)
        if given.text.strip():
            found.append(Row(number, given.messages, given.text, None))
    return found


def as_response(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a record of TRL's SFT formats, `completion` or `messages`, with a `response`."""
    record = dict(record)
    if "completion" in record:
        said = record.pop("completion")
        record["response"] = said if isinstance(said, str) else _last("completion", said, place)
    elif isinstance(record.get("messages"), list) and "response" not in record:
        record["response"] = _last("messages", record["messages"], place)
        record["messages"] = record["messages"][:-1]
    return record


def _last(name: str, given: Any, place: str) -> str:
    """Return the text of the last message, which is the assistant's."""
    check_type(name, given, place)
    messages = as_messages(given, "assistant")
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant":
        raise ValueError(f"{place}: the messages do not end with a response of the assistant.")
    return last["content"]


def check_rendered(name: str, screened: Screened, tokenizer: Any, template: str | None) -> None:
    """Refuse prompts that a chat template has rendered already."""
    refuse_rendered(name, [row.messages for row in screened.rows], tokenizer, template)


def with_own_answers(
    screened: Screened,
    model: nn.Module,
    tokenizer: Any,
    template: str | None,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[Row]:
    """Return the rows with the base's own greedy answers where nothing else is moved from."""
    if screened.kind == PREFERENCES:
        return screened.rows
    form = chat_prompt_form(tokenizer, template)
    texts = generate(
        model,
        tokenizer,
        [form.encode(row.messages) for row in screened.rows],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress="own answers",
    )
    return [row._replace(second=text) for row, text in zip(screened.rows, texts, strict=True)]


def ids_of_sides(
    rows: Sequence[Row], tokenizer: Any, template: str | None, most: int
) -> tuple[list[Ids], list[Ids]]:
    """Return the ids of both sides, responses cut after `most` tokens.

    An empty response is its end of turn.
    """
    chats = [row.messages for row in rows]
    sides = []
    for texts in ([row.first for row in rows], [row.second or "" for row in rows]):
        ids = tokenize_responses(chats, texts, tokenizer, template)
        sides.append([(prompt, response[:most]) for prompt, response in ids])
    return sides[0], sides[1]
