"""Chats -> the text a model reads, by its chat template, and where the response lies in that text.

`chat_format` looks at a template once, by rendering a probe, and freezes what it found: whether
there is a system role, what the template writes after a response, and where a turn ends. Models
without a chat template get a plain one. Knows no pair and no model; needs a fast tokenizer.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] }}"
    "{% else %}{{ 'Answer: ' + message['content'] + eos_token }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAnswer:' }}{% endif %}"
)

_PROBE_SYSTEM, _PROBE_USER, _PROBE_RESPONSE = "PROBESYSTEM", "PROBEUSER", "PROBERESPONSE"


class TemplateRefusalError(ValueError):
    """The chat template raised for this chat, for instance because the roles do not alternate."""


@dataclass(frozen=True)
class ChatFormat:
    """What a chat template does around a response."""

    template: str  # Jinja text
    after_response: str  # what it writes after the last response: "<|im_end|>\n"
    turn_end: str  # what of it the model is to write, the end-of-turn token last: "<|im_end|>"
    takes_system: bool  # whether the text of a system message appears in the rendering
    default_system: str  # the system text it writes when the chat has none


def resolve_chat_template(
    tokenizer: "PreTrainedTokenizerBase", chat_template: str | None = None
) -> str:
    """The template's text: the one given (text or a file), else the tokenizer's, else the plain
    one.

    The plain template begins with the BOS token where the tokenizer puts one in front by itself;
    any other template is responsible for its own, as in transformers.
    """
    if chat_template is not None:
        return _given_template(chat_template)
    if tokenizer.chat_template is not None:
        return tokenizer.get_chat_template()
    if tokenizer.eos_token is None:
        raise ValueError(
            f"{tokenizer.name_or_path or 'The tokenizer'} has neither a chat template nor an eos "
            "token to end a response with. Set one of them: chat_template, or tokenizer.eos_token."
        )
    return ("{{ bos_token }}" if adds_bos(tokenizer) else "") + PLAIN_CHAT_TEMPLATE


def with_chat_template(
    tokenizer: "PreTrainedTokenizerBase", chat_template: str | None
) -> "PreTrainedTokenizerBase":
    """A copy of the tokenizer that carries the template (text or a file), also where it is saved;
    the tokenizer itself where none is given.
    """
    if chat_template is None:
        return tokenizer
    tokenizer = copy(tokenizer)
    tokenizer.chat_template = _given_template(chat_template)
    return tokenizer


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer puts its BOS token in front of a text by itself."""
    first = tokenizer("a")["input_ids"][0]
    return tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id


def chat_format(
    tokenizer: "PreTrainedTokenizerBase", chat_template: str | None = None
) -> ChatFormat:
    """Probe the template. Raises ValueError for a slow tokenizer or a template that hides where a
    response begins or ends."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which cannot say where in the text a "
            "token lies. Load the fast one: AutoTokenizer.from_pretrained(..., use_fast=True)."
        )
    template = resolve_chat_template(tokenizer, chat_template)
    user = [{"role": "user", "content": _PROBE_USER}]
    answer = {"role": "assistant", "content": _PROBE_RESPONSE}
    prompt = render(tokenizer, template, user, add_generation_prompt=True)
    whole = render(tokenizer, template, [*user, answer])
    response = response_text(whole, prompt, "the probe", template)
    if _PROBE_RESPONSE not in response:
        raise ValueError(f"The chat template does not write the response: {_named(template)}")
    after = response.rpartition(_PROBE_RESPONSE)[2]
    takes_system, default_system = _system_role(tokenizer, template, user)
    return ChatFormat(template, after, _turn_end(tokenizer, after), takes_system, default_system)


def render(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
) -> str:
    """The chat as text. Raises TemplateRefusalError where the template raises."""
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    except TemplateError as error:
        raise TemplateRefusalError(f"the chat template refuses the chat: {error}") from error


def prompt_messages(
    messages: Sequence[Message], chat: ChatFormat, instruction: str | None = None
) -> list[Message]:
    """The messages as the template can take them, with an instruction put in.

    It is appended to the system message (the template's default one where the chat has none). A
    template without a system role gets system text and instruction before the first user message.
    """
    system = [m["content"] for m in messages if m["role"] == "system"]
    if instruction is None and (chat.takes_system or not system):
        return list(messages)
    others = [dict(m) for m in messages if m["role"] != "system"]
    if chat.takes_system and not system and chat.default_system:
        system = [chat.default_system]
    text = "\n\n".join([*system, *([instruction] if instruction is not None else [])])
    if chat.takes_system:
        return [{"role": "system", "content": text}, *others]
    first = next(message for message in others if message["role"] == "user")
    first["content"] = f"{text}\n\n{first['content']}"
    return others


def response_text(whole: str, prompt: str, place: str, template: str) -> str:
    """What follows the rendered prompt in the rendering of prompt and response."""
    if not whole.startswith(prompt):
        raise ValueError(
            f"For {place} the chat template writes the prompt (with add_generation_prompt) "
            "differently when a response follows, so it cannot be told where the response "
            f"begins. Prompt: ...{prompt[-60:]!r}, with the response: "
            f"...{whole[max(0, len(prompt) - 60) :][:120]!r}. "
            f"Give another one as chat_template. {_named(template)}"
        )
    return whole[len(prompt) :]


def _given_template(chat_template: str) -> str:
    if "{" in chat_template:
        return chat_template
    path = Path(chat_template).expanduser()
    if not path.is_file():
        raise ValueError(
            f"chat_template is {chat_template!r}: neither Jinja text (no braces in it) nor a file."
        )
    return path.read_text(encoding="utf-8")


def _system_role(
    tokenizer: "PreTrainedTokenizerBase", template: str, user: list[Message]
) -> tuple[bool, str]:
    """Whether system text is taken, and the text that stands in its place when there is none."""
    system = {"role": "system", "content": _PROBE_SYSTEM}
    try:
        given = render(tokenizer, template, [system, *user], add_generation_prompt=True)
    except TemplateRefusalError:
        return False, ""
    if _PROBE_SYSTEM not in given:  # some templates skip it without a word
        return False, ""
    before, _, after = given.partition(_PROBE_SYSTEM)
    absent = render(tokenizer, template, user, add_generation_prompt=True)
    has_default = absent.startswith(before) and absent[len(before) :].endswith(after)
    return True, absent[len(before) : len(absent) - len(after)] if has_default else ""


def _turn_end(tokenizer: "PreTrainedTokenizerBase", after: str) -> str:
    """`after` up to its first control token; without one, its text and the eos token."""
    added = tokenizer.added_tokens_decoder
    control = {index for index, token in added.items() if token.content.strip()}
    encoding = tokenizer(after, add_special_tokens=False, return_offsets_mapping=True)
    for index, (_, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        if index in control or index == tokenizer.eos_token_id:
            return after[:end]
    if tokenizer.eos_token is None:
        raise ValueError(
            f"Neither the chat template nor the tokenizer ({tokenizer.name_or_path}) has a token "
            "that ends a turn. Set tokenizer.eos_token."
        )
    return after.rstrip() + tokenizer.eos_token


def _named(template: str) -> str:
    return f"The template begins: {template[:80]!r}"
