"""Text or messages -> one form: a list of `{role, content}`, further keys of a message kept.

Messages written as text (JSON, or Python's repr as pandas writes it) and HH-RLHF's transcripts
("Human: ... Assistant: ...") are recognised by how they begin. Knows no pair, file or template.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
"""`role` and `content` are text. Other keys (`tool_calls`) are handed to the template; `tools` of a
message are those of the chat."""

CALLS = ("tool_calls", "function_call")
"""Keys of a message that hold calls of tools."""

_MARKER = r"(Human|Assistant):"
_TURN = re.compile(rf"(?:\A|(?:\r?\n){{2}}){_MARKER}")
_TURN_BY_LINE = re.compile(rf"(?:\A|\r?\n){_MARKER}")
_OTHER_ANSWER = re.compile(r"^(?:AI|Bot|Chatbot|Model):", re.MULTILINE)
_ROLES = {"Human": "user", "Assistant": "assistant"}
_KNOWN_ROLES = ("system", "user", "assistant", "tool", "developer", "function")
_SHAREGPT_ROLES = (*_KNOWN_ROLES, "human", "gpt", "function_call", "observation")
_WRITTEN = re.compile(
    r"""\s*(array\()?\[?\s*\{\s*["'](role|content|from|value|tool_calls|name)["']\s*:"""
)
_LIST_WITH_ROLE = re.compile(
    r"""\s*(array\()?\[\s*\{\s*["']((role|from)|\w+["']\s*:.*["'](role|from))["']\s*:""", re.DOTALL
)


def check_type(name: str, value: Any, where: str) -> None:
    """Raise ValueError where `value` is neither text, nor messages, nor None."""
    expected = "expected text or a list of {role, content} messages"
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, list):
        raise ValueError(f"{where}: {name} is {type(value).__name__} ({value!r:.60}), {expected}.")
    for position, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{where}: {name}[{position}] is {message!r:.80}, {expected}.")
        if not isinstance(message.get("content"), str | None):
            kind = type(message["content"]).__name__
            raise ValueError(
                f"{where}: the content of {name}[{position}] is {kind}, expected text."
            )


def as_messages(value: str | list[dict] | None, role: str) -> list[Message]:
    """Return messages: text becomes one of `role`, a transcript given for a user its turns."""
    if value is None:
        return []
    if isinstance(value, list):
        return [_message(message) for message in value]
    if role == "user" and is_transcript(value):
        turns = turns_of(value)
        if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
            turns.pop()  # the marker "Assistant:" after which the response is to come
        return turns
    return [{"role": role, "content": value.strip()}]


def _message(given: Mapping[str, Any]) -> Message:
    others = {key: value for key, value in given.items() if key not in ("role", "content")}
    others = {key: inner for key, inner in without_none(others).items() if inner not in ("", [])}
    return {"role": given["role"], "content": given.get("content") or "", **others}


def without_none(value: Any) -> Any:
    """Return the value without keys that are None: Arrow gives every row the keys of all."""
    if isinstance(value, Mapping):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, list) else value


def written_messages(text: str) -> list[dict] | None:
    """Return the messages that a text holds as JSON or as Python's repr; None for other text.

    JSON that is no list of messages (nor one message) is text.

    Raises:
        ValueError: the text is like messages, but cannot be read as such.
    """
    if not _WRITTEN.match(text):
        return None
    parsed, value = _parsed(text.strip())
    if parsed:
        items = [value] if isinstance(value, dict) else value
        if not isinstance(items, list) or not items or not all(map(_is_message, items)):
            return None
        if all("role" in m and isinstance(m.get("content"), str | None) for m in items):
            return items
    elif not _LIST_WITH_ROLE.match(text):
        return None
    raise ValueError(
        "messages written as text, which can be read neither as JSON nor as Python: write a list "
        "of {role, content} as JSON"
    )


def _parsed(text: str) -> tuple[bool, Any]:
    """Return whether a text is JSON or Python's repr, and its value."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return True, parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return False, None


def _is_message(value: Any) -> bool:
    """Return whether a value is a message, of ShareGPT's form or with other content than text
    too."""
    if not isinstance(value, dict):
        return False
    known = value.get("role") in _KNOWN_ROLES and ("content" in value or "tool_calls" in value)
    return known or (value.get("from") in _SHAREGPT_ROLES and "value" in value)


def answered(messages: Sequence[Message], response: Message) -> list[Message]:
    """Return the chat with the response, which continues the last message if that is the
    assistant's."""
    if not messages or messages[-1]["role"] != "assistant":
        return [*messages, response]
    content = messages[-1]["content"] + response["content"]
    return [*messages[:-1], {**messages[-1], **response, "content": content}]


def with_system(messages: Sequence[Message], system: Any) -> list[Message]:
    """Return the messages behind a system message with the text, if there is any.

    Raises:
        ValueError: the messages hold another system message; `system` is not text.
    """
    if not isinstance(system, str | None):
        raise ValueError(f"system is {type(system).__name__}, expected text")
    given = [m["content"].strip() for m in messages if m["role"] == "system"]
    given = [content for content in given if content]
    if not system or not system.strip() or given == [system.strip()]:
        return list(messages)
    if given:
        raise ValueError("the system column differs from the system message of the prompt")
    return [{"role": "system", "content": system}, *messages]


def with_tools(messages: Sequence[Message], tools: Any, name: str) -> list[Message]:
    """Return the messages with the tools, if any, on the first one behind the system message.

    Args:
        tools: a list of JSON schemas of functions, or its JSON text.
        name: names the tools in errors.

    Raises:
        ValueError: the tools are of another type.
    """
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise ValueError(f"{name} is text, but not JSON") from None
    if not tools or (isinstance(tools, str) and not tools.strip()):
        return list(messages)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{name} is {tools!r:.60}, expected a list of JSON schemas of functions")
    place = next((i for i, m in enumerate(messages) if m["role"] != "system"), 0)
    return [
        {**message, "tools": without_none(tools)} if i == place else message
        for i, message in enumerate(messages)
    ]


def with_parsed_arguments(
    messages: Sequence[Message],
) -> tuple[list[Message], list[dict[str, Any]]]:
    """Return the messages with the arguments of calls as objects, and those that were JSON text."""
    found: list[dict[str, Any]] = []

    def parsed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: parsed(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [parsed(inner) for inner in value]
        if key == "arguments" and isinstance(value, str):
            try:
                arguments = json.loads(value)
            except (ValueError, RecursionError):
                return value
            if isinstance(arguments, dict):
                found.append(arguments)
                return arguments
        return value

    return [
        {key: parsed(value) if key in CALLS else value for key, value in message.items()}
        for message in messages
    ], found


def is_transcript(text: str) -> bool:
    """Return whether a text begins as one of HH-RLHF: by a human, or by an assistant that a human
    answers. Where another speaker answers, the turns are not known."""
    text = text.lstrip()
    if "Assistant:" not in text and _OTHER_ANSWER.search(text):
        return False
    return text.startswith("Human:") or (text.startswith("Assistant:") and "\nHuman:" in text)


def turns_of(transcript: str) -> list[Message]:
    """Return the messages of an HH-RLHF text.

    Turns are separated by an empty line; where no marker follows one, by a line break. Two turns of
    one speaker in a row become one, since templates require alternation.
    """
    text = transcript.strip()
    pieces = _TURN.split(text)
    if len(pieces) == 3:
        pieces = _TURN_BY_LINE.split(text)
    turns: list[Message] = []
    for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True):
        role, content = _ROLES[speaker], content.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + content
        else:
            turns.append({"role": role, "content": content})
    return turns
