"""Chats and their responses -> token ids, with the boundary between them in the right place.

A prompt and its response are rendered together and tokenised once. The response is what follows
the rendered prompt, up to and including the token that ends the turn. So there is one BOS at most,
no marker is cut off, and every view of a prompt has the same response ids. Knows no data set.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rahf.data.chat_format import (
    ChatFormat,
    TemplateRefusalError,
    chat_format,
    prompt_messages,
    render,
    render_prompt,
)
from rahf.data.messages import CALLS, Message, answered

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RenderedPair:
    """A prompt in every view, and both responses after the first of them, as text."""

    prompts: tuple[str, ...]  # without an instruction, then under each
    wholes: tuple[str, str]  # prompt and response, ending with the turn
    ignored: tuple[str, ...] = ()  # what of the pair the template does not write


def render_pair(
    row: int,
    messages: Sequence[Message],
    responses: tuple[Message, Message],
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    instructions: tuple[str, ...],
) -> RenderedPair:
    """Render a chat, without and under each instruction, and both responses after it.

    Raises:
        TemplateRefusalError: the template raises for this chat, ends it in its own way, or omits a
            tool call or a message.
        ValueError: the template does not write an instruction.
    """
    prompt = prompt_messages(messages, chat)
    prompts = [render_prompt(tokenizer, chat, prompt)]
    for instruction in instructions:
        view = prompt_messages(messages, chat, instruction)
        prompts.append(render_prompt(tokenizer, chat, view))
        if instruction not in prompts[-1]:
            raise ValueError(
                f"row {row}: the chat template does not write the instruction "
                f"{instruction[:60]!r} as it was given. Give another chat_template, "
                "or the instruction in plain characters."
            )
    _check_roles(prompt, prompts[0])
    wholes, ignored = [], []
    for response in responses:
        whole = render(tokenizer, chat.template, answered(prompt, response), **chat.options)
        text = _response_text(whole, prompts[0], chat)
        if not _writes(text, response["content"]):
            ignored.append("part of a response, which the chat template rewrites or omits")
        ignored += _ignored(tokenizer, chat, prompt, response, whole)
        wholes.append(whole[: len(whole) - len(chat.after_response)] + chat.turn_end)
    return RenderedPair(tuple(prompts), (wholes[0], wholes[1]), tuple(dict.fromkeys(ignored)))


def _response_text(whole: str, prompt: str, chat: ChatFormat) -> str:
    if not whole.startswith(prompt):
        raise TemplateRefusalError(
            "the chat template writes this prompt differently when the response follows"
        )
    text = whole[len(prompt) :]
    if not text.endswith(chat.after_response):
        raise TemplateRefusalError(
            f"the chat template ends this chat with {text[-20:]!r}, and others with "
            f"{chat.after_response!r}, so the end of the response is ambiguous"
        )
    return text


def _writes(text: str, content: str) -> bool:
    """Return whether the content occurs in the text, blanks and the escapes of JSON aside."""
    content = content.strip()
    if content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text:
        return True
    return "".join(content.split()) in "".join(text.split())


def _check_roles(prompt: Sequence[Message], text: str) -> None:
    """Raise TemplateRefusalError where the template omits a message of an unusual role."""
    for message in prompt:
        role = message["role"]
        if role not in ("system", "user", "assistant") and not _writes(text, message["content"]):
            raise TemplateRefusalError(f"the chat template does not write messages of role {role}")


def _ignored(
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    prompt: Sequence[Message],
    response: Message,
    whole: str,
) -> list[str]:
    """Return which further keys of messages the template omits.

    A key is omitted if the chat without it is rendered alike.

    Raises:
        TemplateRefusalError: the template does not write tool calls.
    """
    ignored = []
    messages = [*prompt, response]
    for key in _further_keys(messages):
        for place, message in enumerate(messages):
            if key not in message:
                continue
            less = {name: value for name, value in message.items() if name != key}
            others = [*messages[:place], less, *messages[place + 1 :]]
            try:
                without = render(
                    tokenizer, chat.template, answered(others[:-1], others[-1]), **chat.options
                )
            except TemplateRefusalError:
                continue  # the template needs it
            if without != whole:
                continue
            if key in CALLS:
                raise TemplateRefusalError(
                    f"the chat template does not write tool calls ({key} of a message)"
                )
            ignored.append(f"{key} of messages, which the chat template does not write")
    return ignored


def _further_keys(messages: Iterable[Message]) -> list[str]:
    keys = {key for message in messages for key in message}
    return sorted(keys - {"role", "content"})


def encode(
    pairs: list[RenderedPair], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[tuple[list[int], ...]], list[tuple[list[int], list[int]]]]:
    """Return the ids of every view of the prompts, and of both responses, pair by pair."""
    if not pairs:
        return [], []
    views = len(pairs[0].prompts)
    flat = _ids(tokenizer, [prompt for pair in pairs for prompt in pair.prompts])
    prompts = [tuple(flat[i * views : (i + 1) * views]) for i in range(len(pairs))]
    boundaries = [len(pair.prompts[0]) for pair in pairs]
    sides = [
        _response_ids(
            tokenizer,
            [pair.wholes[side] for pair in pairs],
            boundaries,
            [views[0] for views in prompts],
        )
        for side in range(2)
    ]
    return prompts, list(zip(*sides, strict=True))


def tokenize_responses(
    chats: Sequence[Sequence[Message]],
    responses: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    chat_template: str | None = None,
) -> list[tuple[list[int], list[int]]]:
    """Return the ids of each prompt and of its response, end of turn included, as rows hold them.

    Raises:
        ValueError: the template refuses a chat.
    """
    chat = chat_format(tokenizer, chat_template)
    rendered = [
        render_pair(
            row, messages, ({"role": "assistant", "content": response},) * 2, tokenizer, chat, ()
        )
        for row, (messages, response) in enumerate(zip(chats, responses, strict=True))
    ]
    prompts, sides = encode(rendered, tokenizer)
    return [(views[0], ids[0]) for views, ids in zip(prompts, sides, strict=True)]


def _response_ids(
    tokenizer: "PreTrainedTokenizerBase",
    wholes: list[str],
    boundaries: list[int],
    prompts: list[list[int]],
) -> list[list[int]]:
    """Return the ids after the prompt's; if a token crosses the boundary, the response is tokenised
    on its own."""
    encoded = tokenizer(
        wholes, add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    starts = list(map(len, prompts))
    responses = [ids[start:] for ids, start in zip(encoded["input_ids"], starts, strict=True)]
    across = [
        i
        for i, encoding in enumerate(encoded.encodings)
        if not _splits_at(encoding, starts[i], boundaries[i])
    ]
    alone = _ids(tokenizer, [wholes[i][boundaries[i] :] for i in across])
    for i, ids in zip(across, alone, strict=True):
        responses[i] = ids
    return responses


def _splits_at(encoding: "Encoding", count: int, boundary: int) -> bool:
    """Return whether the first `count` tokens end at the boundary.

    `count` is the number of tokens that the prompt has on its own.

    Offsets do not suffice: some tokenizers omit blanks from them, so a token that holds the
    prompt's last blank and the response's first word looks like the response's.
    """
    # Only two places are looked up: the offsets of all tokens take longer than the tokens.
    return (
        count < len(encoding)
        and encoding.token_to_chars(count)[0] >= boundary
        and (count == 0 or encoding.token_to_chars(count - 1)[1] <= boundary)
    )


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]
