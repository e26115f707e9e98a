"""Chats -> the text a model reads, by its chat template, and where the response is in that text.

`chat_format` looks at a template once, by rendering a probe, and freezes what it found: whether
there is a system role, what the template writes after a response, and where a turn ends. Models
without a chat template get a plain one. Knows no pair and no model; needs a fast tokenizer.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from rahf.data.messages import Message, answered, with_parsed_arguments
from rahf.data.named_templates import given_template, named_templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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

_WITHOUT_THINKING: tuple[dict[str, Any], ...] = (
    {},
    {"enable_thinking": False},
    {"thinking": False},
)
"""Options of templates, tried in this order: none, then those that switch thinking off."""

_RAISED_BY_TEMPLATES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What the code in a template raises for a chat that it was not written for."""


class TemplateRefusalError(ValueError):
    """The chat template raised for this chat, for instance because the roles do not alternate, or
    wrote the chat in a way that hides the response."""


@dataclass(frozen=True)
class ChatFormat:
    """What a chat template does around a response."""

    template: str  # Jinja text
    after_response: str  # what it writes after the last response: "<|im_end|>\n"
    turn_end: str  # what of it the model is to write, the end-of-turn token last: "<|im_end|>"
    takes_system: bool  # whether the text of a system message appears in the rendering
    default_system: str  # the system text it writes when the chat has none
    before_response: str = ""  # what it writes between prompt and response: "<think></think>"
    opening: str = ""  # the end of its generation prompt that is omitted: "<think>"
    options: Mapping[str, Any] = field(default_factory=dict)  # what it is given besides the chat
    user_marker: str = ""  # what it writes in front of a user message: "[INST]"
    generation_prompt: str = ""  # what it writes behind the last user message: "[/INST]"

    def notes(self) -> tuple[str, ...]:
        """Return what the template does beyond writing the messages."""
        notes = []
        if self.opening:
            notes.append(
                f"the chat template opens {self.opening.strip()!r} for the model to continue; the "
                "opening is omitted, because the template writes no response behind it"
            )
        if self.options:
            given = ", ".join(f"{key}={value}" for key, value in self.options.items())
            notes.append(f"the chat template is rendered with {given}")
        if self.before_response.strip():
            notes.append(
                f"the chat template writes {self.before_response!r} before a response; it is "
                "trained as part of the response"
            )
        return tuple(notes)


def resolve_chat_template(
    tokenizer: "PreTrainedTokenizerBase", chat_template: str | None = None
) -> str:
    """Return the template's text: the one given (text, a file, or the name of one of the
    tokenizer's), else the tokenizer's (of several the default), else the plain one.

    The plain template begins with the BOS token where the tokenizer adds one by itself;
    any other template is responsible for its own, as in transformers.
    """
    if chat_template is not None:
        return given_template(tokenizer, chat_template)
    if (named := named_templates(tokenizer)) and "default" not in named:
        raise ValueError(
            f"the tokenizer has several chat templates ({', '.join(sorted(named))}) and none of "
            "the name default: set chat_template to one of these names."
        )
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
    """Return a copy of the tokenizer that carries and saves the template (text, a file or a name),
    or the tokenizer itself where none is given.
    """
    if chat_template is None:
        return tokenizer
    tokenizer = copy(tokenizer)
    tokenizer.chat_template = given_template(tokenizer, chat_template)
    return tokenizer


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the tokenizer puts its BOS token in front of a text by itself."""
    first = tokenizer("a")["input_ids"][0]
    return tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id


def chat_format(
    tokenizer: "PreTrainedTokenizerBase", chat_template: str | None = None
) -> ChatFormat:
    """Probe the template. Raises ValueError for a slow tokenizer or a template that hides where a
    response begins or ends."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not report where in "
            "the text a token is. "
            "Load the fast one: AutoTokenizer.from_pretrained(..., use_fast=True)."
        )
    template = resolve_chat_template(tokenizer, chat_template)
    user = [{"role": "user", "content": _PROBE_USER}]
    options, opening, prompt, response = _boundary(tokenizer, template, user)
    if _PROBE_RESPONSE not in response:
        raise ValueError(f"The chat template does not write the response: {_named(template)}")
    before, _, after = response.rpartition(_PROBE_RESPONSE)
    takes_system, default_system = _system_role(tokenizer, template, user)
    user_marker, _, generation_prompt = prompt.partition(_PROBE_USER)
    bos = tokenizer.bos_token or ""
    return ChatFormat(
        template,
        after,
        _turn_end(tokenizer, after),
        takes_system,
        default_system,
        before,
        opening,
        options,
        user_marker.removeprefix(bos).strip().rpartition("\n")[2],
        generation_prompt.strip(),
    )


def _boundary(
    tokenizer: "PreTrainedTokenizerBase", template: str, user: list[Message]
) -> tuple[dict[str, Any], str, str, str]:
    """Return options and opening (see `ChatFormat`) with which a response follows the prompt, the
    prompt, and the response as written.

    Raises:
        ValueError: no options of the template have this effect.
    """
    chat = [*user, {"role": "assistant", "content": _PROBE_RESPONSE}]
    rendered = []
    for options in _WITHOUT_THINKING:
        prompt = render(tokenizer, template, user, add_generation_prompt=True, **options)
        whole = render(tokenizer, template, chat, **options)
        if whole.startswith(prompt):
            return options, "", prompt, whole[len(prompt) :]
        rendered.append((prompt, whole))
    prompt, whole = rendered[0]
    shared = next(i for i in range(len(prompt)) if not whole.startswith(prompt[: i + 1]))
    if _opens_thought(prompt[prompt.rfind(_PROBE_USER) :]):
        return {}, prompt[shared:], prompt, whole[shared:]
    raise ValueError(
        "The chat template writes the prompt (with add_generation_prompt) differently when a "
        "response follows, so the start of the response is ambiguous. "
        f"Prompt: ...{prompt[-60:]!r}, with the response: "
        f"...{whole[max(0, len(prompt) - 60) :][:120]!r}. "
        f"Give another one as chat_template. {_named(template)}"
    )


def _opens_thought(generation_prompt: str) -> bool:
    return any(word in generation_prompt.lower() for word in ("think", "thought", "reason"))


def render(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    **options: Any,
) -> str:
    """Return the chat as text; `tools` of a message go to the template beside the messages.

    Arguments of tool calls that are JSON text become objects, as most templates take them, unless
    the template refuses objects or writes them as Python does.

    Raises:
        TemplateRefusalError: the template raises.
    """
    parsed, arguments = with_parsed_arguments(messages)
    if arguments:
        try:
            text = _render(tokenizer, template, parsed, add_generation_prompt, options)
        except TemplateRefusalError:
            text = ""
        if text and not any(str(given) in text for given in arguments if given):
            return text
    return _render(tokenizer, template, messages, add_generation_prompt, options)


def _render(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    options: Mapping[str, Any],
) -> str:
    tools = next((m["tools"] for m in messages if isinstance(m.get("tools"), list)), None)
    if tools is not None:
        options = {"tools": tools, **options}
        named = named_templates(tokenizer)
        if template == named.get("default"):
            template = named.get("tool_use", template)
        messages = [{key: m[key] for key in m if key != "tools"} for m in messages]
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **options,
        )
    except _RAISED_BY_TEMPLATES as error:
        raise TemplateRefusalError(f"the chat template refuses the chat: {error}") from error


def render_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    messages: Sequence[Message],
) -> str:
    """Return the text before a response: up to the response's marker, or to the end of the
    assistant's message that the response continues.

    Raises:
        TemplateRefusalError: the template raises, or writes this prompt in another way than others.
    """
    if messages and messages[-1]["role"] == "assistant":
        probe = answered(messages, {"role": "assistant", "content": _PROBE_RESPONSE})
        whole = render(tokenizer, chat.template, probe, **chat.options)
        text, found, _ = whole.rpartition(_PROBE_RESPONSE)
        if not found or messages[-1]["content"].strip() not in text:
            raise TemplateRefusalError("the chat template does not write the message to continue")
        return text
    text = render(tokenizer, chat.template, messages, add_generation_prompt=True, **chat.options)
    if not text.endswith(chat.opening):
        raise TemplateRefusalError("the chat template ends this prompt in another way than others")
    return text.removesuffix(chat.opening)


def prompt_messages(
    messages: Sequence[Message], chat: ChatFormat, instruction: str | None = None
) -> list[Message]:
    """Return the messages as the template can take them, with the instruction inserted.

    The instruction is appended to the system message, or to the template's default one. A template
    without a system role gets system text and instruction before the first user message.
    """
    system = [m["content"] for m in messages if m["role"] == "system"]
    further = {key: m[key] for m in messages if m["role"] == "system" for key in m}
    if instruction is None and (chat.takes_system or not system):
        return list(messages)
    others = [dict(m) for m in messages if m["role"] != "system"]
    if chat.takes_system and not system and chat.default_system:
        system = [chat.default_system]
    text = "\n\n".join([*system, *([instruction] if instruction is not None else [])])
    if chat.takes_system:
        return [{**further, "role": "system", "content": text}, *others]
    first = next(message for message in others if message["role"] == "user")
    first["content"] = f"{text}\n\n{first['content']}"
    return others


def _system_role(
    tokenizer: "PreTrainedTokenizerBase", template: str, user: list[Message]
) -> tuple[bool, str]:
    """Return whether the template takes system text, and its own where the chat has none."""
    system = {"role": "system", "content": _PROBE_SYSTEM}
    try:
        given = render(tokenizer, template, [system, *user], add_generation_prompt=True)
    except TemplateRefusalError:
        return False, ""
    if _PROBE_SYSTEM not in given:  # some templates omit it silently
        return False, ""
    before, _, after = given.partition(_PROBE_SYSTEM)
    absent = render(tokenizer, template, user, add_generation_prompt=True)
    has_default = absent.startswith(before) and absent[len(before) :].endswith(after)
    return True, absent[len(before) : len(absent) - len(after)] if has_default else ""


def _turn_end(tokenizer: "PreTrainedTokenizerBase", after: str) -> str:
    """Return `after` up to its first control token; without one, its text and the eos token."""
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
