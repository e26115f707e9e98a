"""Text or messages -> one form: a list of `{role, content}`.

HH-RLHF's transcripts ("Human: ... Assistant: ...") are told apart by how they begin. Knows no pair,
no file and no template.
"""

import re
from typing import Any

Message = dict[str, str]

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def check_type(name: str, value: Any, where: str) -> None:
    """Raises ValueError where `value` is neither text, nor messages, nor None."""
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
    """Text becomes one message of `role`, a transcript given for a user the turns it holds."""
    if value is None:
        return []
    if isinstance(value, list):
        return [{"role": m["role"], "content": m.get("content") or ""} for m in value]
    if role == "user" and is_transcript(value):
        turns = turns_of(value)
        if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
            turns.pop()  # the marker "Assistant:" after which the response is to come
        return turns
    return [{"role": role, "content": value.strip()}]


def is_transcript(text: str) -> bool:
    return text.lstrip().startswith("Human:")


def turns_of(transcript: str) -> list[Message]:
    """HH-RLHF text -> messages; two turns of one speaker in a row become one, as templates ask for
    alternation."""
    pieces = _TURN.split(transcript.strip())
    turns: list[Message] = []
    for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True):
        role, content = _ROLES[speaker], content.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + content
        else:
            turns.append({"role": role, "content": content})
    return turns
