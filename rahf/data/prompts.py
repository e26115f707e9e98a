"""Files of prompts, and files of responses to them: ours, and AlpacaEval's layout.

A prompt is a chat that ends with the user. `PromptForm` turns such a chat into what a model
reads, and what the model writes into a response. Knows no model; torch is not imported.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rahf.data.chat_format import chat_format, prompt_messages, render_prompt
from rahf.data.messages import (
    Message,
    as_messages,
    check_type,
    with_system,
    with_tools,
    written_messages,
)
from rahf.data.records import read_records
from rahf.data.rendered_already import control_tokens, rendered_already

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_KEYS = ("prompt", "messages", "instruction")
RESPONSE_KEYS = ("response", "output")
ALPACA_EVAL_KEYS = ("dataset", "datasplit")
"""Columns of AlpacaEval's files that are carried along."""


@dataclass(frozen=True)
class PromptForm:
    """How prompts are put to a model."""

    name: str
    encode: Callable[[Sequence[Message]], list[int]]  # chat -> ids of the prompt
    stops: tuple[str, ...] = ()  # texts at which a response ends, besides the end-of-text token
    extract: Callable[[str], str] = str.strip  # what the model wrote -> the response


class Prompt(NamedTuple):
    """A chat to be answered, and what else its record holds of AlpacaEval's columns."""

    messages: list[Message]
    extra: dict[str, Any]


class Response(NamedTuple):
    """One model's response to a prompt."""

    messages: list[Message]  # the prompt
    text: str
    generator: str  # name of what wrote it; "" where the file does not name it
    finished: bool = False  # the file states that the model wrote its end


def chat_prompt_form(
    tokenizer: "PreTrainedTokenizerBase", chat_template: str | None = None
) -> PromptForm:
    """Return the form of the chat template: the one given, the tokenizer's, or the plain one."""
    chat = chat_format(tokenizer, chat_template)

    def encode(messages: Sequence[Message]) -> list[int]:
        messages = prompt_messages(messages, chat)
        text = render_prompt(tokenizer, chat, messages)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return PromptForm("chat template", encode)


def read_prompts(path: str | Path) -> list[Prompt]:
    """Return the prompts of records with `prompt`, `messages` or AlpacaEval's `instruction`: text,
    an HH-RLHF transcript or messages.

    Raises:
        ValueError: a record without a prompt, or whose chat does not end with the user; no record.
    """
    prompts = [
        Prompt(
            _chat(record, place), {key: record[key] for key in ALPACA_EVAL_KEYS if key in record}
        )
        for place, record in read_records(Path(path))
    ]
    if not prompts:
        raise ValueError(f"{path} holds no prompts; give a file with at least one record.")
    return prompts


def read_chats(
    path: str | Path, tokenizer: "PreTrainedTokenizerBase", chat_template: str | None = None
) -> list[list[Message]]:
    """Return the chats of `read_prompts`, none of which is rendered already."""
    chats = [prompt.messages for prompt in read_prompts(path)]
    refuse_rendered(path, chats, tokenizer, chat_template)
    return chats


def refuse_rendered(
    path: str | Path,
    chats: Sequence[Sequence[Message]],
    tokenizer: "PreTrainedTokenizerBase",
    chat_template: str | None = None,
) -> None:
    """Refuse prompts that a chat template has rendered already: they would be rendered twice.

    Raises:
        ValueError: the first such prompt, with its number from 1.
    """
    chat, control = chat_format(tokenizer, chat_template), control_tokens(tokenizer)
    marks = (chat.user_marker, chat.generation_prompt)
    for number, messages in enumerate(chats, 1):
        reason = rendered_already(messages, {}, control, marks)
        if reason is not None:
            raise ValueError(f"{path}, prompt {number}: {reason}.")


def read_responses(path: str | Path) -> list[Response]:
    """Return what `rahf generate` has written, in either layout."""
    responses = [response_of(record, place) for place, record in read_records(Path(path))]
    if not responses:
        raise ValueError(f"{path} holds no responses; give a file with at least one record.")
    return responses


def response_of(record: Mapping[str, Any], place: str) -> Response:
    """Return the response that a record holds; `place` names the record in an error."""
    key = next((name for name in RESPONSE_KEYS if isinstance(record.get(name), str)), None)
    if key is None:
        raise ValueError(
            f"{place}: no response; every record needs a text as `response` or `output`. "
            f"It has: {', '.join(record)}."
        )
    chat = _chat(record, place)
    generator, finished = str(record.get("generator") or ""), record.get("finished") is True
    return Response(chat, record[key], generator, finished)


def response_layout(path: Path) -> Callable[[Sequence[Mapping[str, Any]]], str]:
    """Return how records of responses are written into a file of this name: .jsonl is our layout,
    .json is AlpacaEval's.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix == ".jsonl":
        return _json_lines
    if path.suffix == ".json":
        return _alpaca_eval
    raise ValueError(
        f"{path}: the name should end in .jsonl (our layout) or .json (AlpacaEval's layout)."
    )


def prompt_text(messages: Sequence[Message]) -> str:
    """Return a chat as one text: its only message, or its turns with the speakers' names."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)


def _chat(record: Mapping[str, Any], place: str) -> list[Message]:
    key = next((name for name in PROMPT_KEYS if record.get(name)), None)
    if key is None:
        raise ValueError(
            f"{place}: no prompt; every record needs a `prompt`, text or messages (or AlpacaEval's "
            f"`instruction`). It has: {', '.join(record)}."
        )
    check_type(key, record[key], place)
    try:
        written = written_messages(record[key]) if isinstance(record[key], str) else None
        messages = as_messages(written or record[key], "user")
        messages = with_tools(
            with_system(messages, record.get("system")), record.get("tools"), "tools"
        )
    except ValueError as error:
        raise ValueError(f"{place}: {error}.") from None
    if messages and messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{place}: the chat ends with a message of the assistant. It is not continued here, "
            "since judges and rahf shift read complete answers: remove that message."
        )
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ValueError(f"{place}: the chat does not end with a message of the user.")
    return messages


def _json_lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _alpaca_eval(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {
            "instruction": prompt_text(as_messages(record["prompt"], "user")),
            "output": record["response"],
            "generator": record["generator"],
            **{key: record[key] for key in ALPACA_EVAL_KEYS if key in record},
        }
        for record in records
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
