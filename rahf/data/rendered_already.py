"""Finds pairs whose texts a chat template has rendered already, so that none is rendered twice.

Such a text holds control tokens of the tokenizer, or the marks that the template or a widespread
one writes around a user message. Transcripts of speakers that are not read as turns count too.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MARKS_OF_OTHERS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
)
"""Marks of widespread templates, which are text to a tokenizer of another kind."""

PLAIN_FORMS = (
    ("[INST]", "[/INST]"),
    ("### Instruction:", "### Response:"),
    ("<|user|>", "<|assistant|>"),
    ("USER:", "ASSISTANT:"),
)
"""What widespread templates write around a user message as plain text."""


_ASKS = r"(?:User|Human|Q|Question|Customer)"
_ANSWERS = r"(?:Bot|AI|Assistant|Chatbot|Model|A|Answer|Agent)"
_ASKED = re.compile(rf"^{_ASKS}:", re.MULTILINE)
_ANSWERED = re.compile(rf"^{_ANSWERS}:", re.MULTILINE)
_TO_ANSWER = re.compile(rf"(?:^|\n){_ANSWERS}:\s*\Z")


def transcript(text: str) -> tuple[str, str] | None:
    """Return the two markers of a text that is a transcript, such as `User:` and `Bot:`.

    It ends where the second speaker is to answer, or begins with the first speaker and ends with
    a further question. A text that only holds a dialogue, as one to summarise, is none.
    """
    asked, answered = list(_ASKED.finditer(text)), list(_ANSWERED.finditer(text))
    if not asked or not answered or answered[0].start() < asked[0].start():
        return None
    begins = not text[: asked[0].start()].strip()
    if _TO_ANSWER.search(text) or (begins and asked[-1].start() > answered[-1].start()):
        return asked[0][0], answered[0][0]
    return None


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, tuple[str, ...]]:
    """Return the tokens that no text should hold, by their first two characters.

    Marks of thinking are not among them: they may occur in a response.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special}
    special |= {*tokenizer.all_special_tokens, *MARKS_OF_OTHERS}
    by_start: dict[str, tuple[str, ...]] = {}
    for token in sorted(special):
        if token.strip() and "think" not in token.lower():
            by_start[token[:2]] = (*by_start.get(token[:2], ()), token)
    return by_start


def foreign_marks(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Return the marks of widespread templates that are plain text to this tokenizer."""
    own = tokenizer.get_added_vocab()
    return tuple(mark for mark in MARKS_OF_OTHERS if mark not in own)


def rendered_already(
    prompt: Sequence[Mapping[str, str]],
    responses: Mapping[str, str],
    control: Mapping[str, Sequence[str]],
    marks: tuple[str, str],
) -> str | None:
    """Return why a pair counts as rendered already, a reason to drop it; None for plain text.

    Args:
        prompt: its messages.
        responses: {name: text}.
        control: what `control_tokens` returns.
        marks: what the template writes in front of and behind a user message.
    """
    texts = [("the prompt", message["content"]) for message in prompt] + [*responses.items()]
    for name, text in texts:
        found = _first_control(text, control)
        if found is not None:
            return (
                f"{name} holds the control token {found!r}, as if a chat template had rendered it "
                "already: give plain text or messages"
            )
    if any(m["role"] == "user" and _between(m["content"], marks) for m in prompt):
        return (
            f"the prompt is enclosed in {marks[0]!r} and {marks[1]!r}, as if the chat template "
            "had rendered it already: give plain text or messages"
        )
    users = [m["content"] for m in prompt if m["role"] == "user"]
    form = next((form for form in PLAIN_FORMS for text in users if _between(text, form)), None)
    if form is not None:
        return (
            f"the prompt holds {form[0]!r} and ends with {form[1]!r}, as if another template had "
            "rendered it already: give plain text or messages"
        )
    if spoken := next(filter(None, map(transcript, users)), None):
        return (
            f"the prompt is a transcript of {spoken[0]!r} and {spoken[1]!r}, which would be one "
            "message: give messages, or write Human: and Assistant:"
        )
    return None


def _first_control(text: str, control: Mapping[str, Sequence[str]]) -> str | None:
    # A tokenizer may have hundreds of tokens; most texts do not hold the start of any.
    starts = [start for start in control if start in text]
    return next((token for start in starts for token in control[start] if token in text), None)


def _between(text: str, marks: tuple[str, str]) -> bool:
    return all(marks) and marks[0] in text and text.rstrip().endswith(marks[1])
