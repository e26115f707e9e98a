"""One record of any supported preference format -> the chat before the response, and two responses.

Knows no data set, tokenizer or template.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rahf.data.messages import (
    CALLS,
    Message,
    as_messages,
    check_type,
    is_transcript,
    turns_of,
    with_system,
    with_tools,
    written_messages,
)

PAIR_COLUMNS = ("prompt", "chosen", "rejected")
OPTIONAL_COLUMNS = ("system", "tools")

REFUSED_COLUMNS = ("input", "history")
"""Columns that other formats join with the prompt, each in its own way."""

PROMPT_LIKE_COLUMNS = ("instruction", "question", "query", *REFUSED_COLUMNS)
"""Columns that may hold the prompt where there is no `prompt`."""

MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")
"""Columns of what a pair is about, where it is not text."""

NO_PROMPT = "the sides share no prompt"

DEEPEST = 64
"""Levels of lists and mappings in a value, at most."""

LONGEST = 1_000_000
"""Characters of a text, at most: more are some 250,000 tokens, and tokenise for seconds."""


class UnusablePairError(ValueError):
    """The row is of the right type, but no pair can be made of it; the text is the reason shown in
    the report."""


class Pair(NamedTuple):
    """A prompt and two responses."""

    prompt: list[Message]
    chosen: Message
    rejected: Message


def pair_of(
    record: Mapping[str, Any], mapping: Mapping[str, str], where: str
) -> tuple[Pair, list[str]]:
    """Return the pair of a record, and what of the record was not read.

    Args:
        mapping: {wanted: given} for the columns of the data set.
        where: names the record in errors.

    Raises:
        UnusablePairError: the record is of the right type, but holds no pair.
        ValueError: a value of the wrong type, or a column that may belong to the prompt.
    """
    taken = set(mapping.values())
    optional = {name: name for name in OPTIONAL_COLUMNS if name not in {*mapping, *taken}}
    names = {**mapping, **optional}
    if "system" in optional and "system" not in record and "system_prompt" not in taken:
        names["system"] = "system_prompt"
    given = {wanted: record.get(name) for wanted, name in names.items()}
    unread = {k: v for k, v in record.items() if k not in names.values() and v not in (None, "")}
    refuse_media([name for name in unread if unread[name] != []], where)
    for name, value in given.items():
        _check_readable(name, value)
    explicit = "prompt" in mapping
    try:
        pair = _split(given, where)
    except UnusablePairError as error:
        if str(error) != NO_PROMPT:
            raise
        # The prompt may be in a column of another name; that is a fault of the data set.
        text = f"{given['chosen']}\n{given['rejected']}"
        for name in PROMPT_LIKE_COLUMNS:
            _check_unread(name, unread.get(name), text, where)
        raise UnusablePairError(no_prompt(unread)) from None
    text = "\n".join(message["content"] for message in pair.prompt)
    suspects = REFUSED_COLUMNS if explicit else ()
    plain = not explicit and not any(map(_is_chat, (given["chosen"], given["rejected"])))
    for name in PROMPT_LIKE_COLUMNS if plain else suspects:
        _check_unread(name, unread.get(name), text, where)
    return _checked(pair), [f"column {name}" for name in unread]


def refuse_media(columns: Iterable[str], where: str) -> None:
    """Refuse pairs about pictures or sound, of which only the text would be read.

    Raises:
        ValueError: the first such column.
    """
    for name in columns:
        if name in MEDIA_COLUMNS:
            raise ValueError(
                f"{where} has a column {name}: pairs about pictures, sound or video cannot be "
                "aligned, since only text is read. Remove the column if the text is what you mean."
            )


def _check_readable(name: str, value: Any) -> None:
    """Raise UnusablePairError for NaN, half a surrogate pair, or a value too long or too deep."""
    stack = [(value, 0)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, float) and value != value:
            raise UnusablePairError(f"{name} is NaN")
        if isinstance(value, str) and len(value) > LONGEST:
            raise UnusablePairError(f"{name} holds a text of more than {LONGEST:,} characters")
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UnusablePairError(
                    f"{name} holds half of a surrogate pair, which is not a character"
                ) from None
        if depth > DEEPEST:
            raise UnusablePairError(f"{name} is nested more than {DEEPEST} levels deep")
        if isinstance(value, Mapping):
            stack += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            stack += [(inner, depth + 1) for inner in value]


def no_prompt(unread: Iterable[str]) -> str:
    """Return the reason to drop a row without a prompt: which columns might hold one."""
    names = ", ".join(sorted(unread))
    if not names:
        return NO_PROMPT
    return f"{NO_PROMPT}; if one of the columns {names} holds it, set columns: {{prompt: its name}}"


def _check_unread(name: str, value: Any, text: str, where: str) -> None:
    """Raise ValueError for a column with text that occurs nowhere in `text`, as in the prompt."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping | list):
            stack += value.values() if isinstance(value, Mapping) else value
        elif isinstance(value, str) and value.strip() and value.strip() not in text:
            raise ValueError(
                f"{where}: the column {name!r} ({value!r:.60}) may belong to the prompt, but is "
                f"not read. Write its text into the prompt, map it (columns: {{prompt: {name}}}), "
                "or remove it."
            )


def _split(given: Mapping[str, Any], where: str) -> Pair:
    prompt, chosen, rejected = (_value(name, given.get(name), where) for name in PAIR_COLUMNS)
    explicit = "prompt" in given
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if _is_blank(value):
            raise UnusablePairError(f"{name} is empty")
    if explicit and _is_blank(prompt):
        raise UnusablePairError("the prompt is empty")

    sides = (chosen, rejected)
    dialogues = [isinstance(side, str) and _is_dialogue(side) for side in sides]
    if any(isinstance(value, list) for value in (prompt, *sides)):
        context, *responses = _split_messages(prompt, *sides)
    elif all(dialogues):
        context, *responses = _split_messages(None, turns_of(chosen), turns_of(rejected))
        if explicit and as_messages(prompt, "user")[-1] not in context:
            raise UnusablePairError("the prompt column is not among the messages")
    elif any(dialogues):
        raise UnusablePairError("one side is a transcript (Human: ... Assistant: ...) and one not")
    elif explicit:
        context = as_messages(prompt, "user")
        responses = [_response(side.strip()) for side in sides]
    else:
        context, *responses = _split_text(chosen, rejected)
    try:
        context = with_tools(with_system(context, given.get("system")), given.get("tools"), "tools")
    except ValueError as error:
        raise UnusablePairError(str(error)) from None
    return Pair(context, *responses)


def _value(name: str, value: Any, where: str) -> str | list[dict] | None:
    """Return text or messages, messages that were written as text among them."""
    check_type(name, value, where)
    if not isinstance(value, str):
        return value
    try:
        messages = written_messages(value)
    except ValueError as error:
        raise UnusablePairError(f"{name} holds {error}") from None
    return value if messages is None else messages


def _checked(pair: Pair) -> Pair:
    # An empty system message is how many sets express "none"; kept, it would switch off the
    # template's own.
    prompt = [m for m in pair.prompt if m["role"] != "system" or m["content"].strip()]
    for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if _says_nothing(response):
            raise UnusablePairError(f"{name} is empty")
    if _stripped(pair.chosen) == _stripped(pair.rejected):
        raise UnusablePairError("chosen and rejected are identical")
    if not any(message["role"] == "user" for message in prompt):
        raise UnusablePairError("the prompt holds no user message")
    if any(map(_says_nothing, prompt)):
        raise UnusablePairError("a message of the prompt is empty")
    return pair._replace(prompt=prompt)


def _says_nothing(message: Message) -> bool:
    return not message["content"].strip() and not any(key in message for key in CALLS)


def _is_blank(value: Any) -> bool:
    return not (value.strip() if isinstance(value, str) else value)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) or _is_dialogue(value) or written_messages(value) is not None


def _is_dialogue(text: str) -> bool:
    return is_transcript(text) and any(turn["role"] == "assistant" for turn in turns_of(text))


def _split_messages(
    prompt: str | list[dict] | None, *sides: str | list[dict]
) -> tuple[list[Message], Message, Message]:
    """Return the shared messages as the prompt, and the one assistant message that each side must
    hold after them.

    A side may be the response only (the prompt column goes in front of it) or the complete chat, as
    in UltraFeedback, where the prompt column repeats a message of it.
    """
    start = as_messages(prompt, "user")
    chosen, rejected = whole = [
        _whole(start, side, repeats=isinstance(prompt, str)) for side in sides
    ]
    if isinstance(prompt, str) and any(start[-1] not in map(_plain, side) for side in whole):
        raise UnusablePairError("the prompt column is not among the messages")
    if chosen == rejected:
        raise UnusablePairError("chosen and rejected are identical")
    shorter, shared = min(len(chosen), len(rejected)), _shared_length(chosen, rejected)
    if shared == shorter:
        raise UnusablePairError("one side is the beginning of the other, so one has no response")
    if shared + 1 != len(chosen) or shared + 1 != len(rejected):
        raise UnusablePairError("the sides differ in more than the last message")
    if shared == 0:
        raise UnusablePairError(NO_PROMPT)
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise UnusablePairError("the last message is not the assistant's")
    return chosen[:-1], chosen[-1], rejected[-1]


def _whole(start: list[Message], side: str | list[dict], *, repeats: bool) -> list[Message]:
    """Return a side with the prompt in front, where it does not repeat the prompt itself.

    Args:
        repeats: a side that does not begin with the assistant is a complete chat.
    """
    continues = bool(start) and start[-1]["role"] == "assistant"
    if isinstance(side, str) and continues:
        return [*start, _response(side.rstrip())]
    side = as_messages(side, "assistant")
    if side[: len(start)] == start or (repeats and side[0]["role"] != "assistant"):
        return side
    if continues and len(side) == len(start) > 1 and side[:-1] == start[:-1]:
        begun, content = start[-1]["content"], side[-1]["content"]
        if content.startswith(begun):  # the last message as a whole, begun in the prompt
            return [*start, {**side[-1], "content": content[len(begun) :]}]
    return [*start, *side]


def _plain(message: Message) -> Message:
    return {"role": message["role"], "content": message["content"].strip()}


def _stripped(message: Message) -> Message:
    return {**message, "content": message["content"].strip()}


def _response(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _split_text(chosen: str, rejected: str) -> tuple[list[Message], Message, Message]:
    """Return the longest shared beginning that ends between two words, and the rest."""
    if chosen.strip() == rejected.strip():
        raise UnusablePairError("chosen and rejected are identical")
    end = _shared_length(chosen, rejected)
    if not chosen[end:].strip() or not rejected[end:].strip():
        raise UnusablePairError(
            "one side is the beginning of the other, so the end of the prompt is ambiguous"
        )
    while end > 0 and not _between_words(chosen, rejected, end):
        end -= 1
    if not chosen[:end].strip():
        raise UnusablePairError(NO_PROMPT)
    return (
        [{"role": "user", "content": chosen[:end].strip()}],
        _response(chosen[end:].strip()),
        _response(rejected[end:].strip()),
    )


def _between_words(chosen: str, rejected: str, end: int) -> bool:
    return chosen[end - 1].isspace() or (chosen[end].isspace() and rejected[end].isspace())


def _shared_length(first: Sequence, second: Sequence) -> int:
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)
