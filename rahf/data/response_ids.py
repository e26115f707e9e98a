"""Chats and their responses -> token ids, with the boundary between them in the right place.

A prompt and its response are rendered together and tokenised once. The response is what lies after
the rendered prompt, up to and including the token that ends the turn. So there is one BOS at most,
no marker is cut off, and every view of a prompt has the same response ids. Knows no data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rahf.data.chat_format import (
    ChatFormat,
    Message,
    chat_format,
    prompt_messages,
    render,
    response_text,
)

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RenderedPair:
    """A prompt in every view, and both responses after the first of them, as text."""

    prompts: tuple[str, ...]  # without an instruction, then under each
    wholes: tuple[str, str]  # prompt and response, ending with the turn


def render_pair(
    row: int,
    messages: Sequence[Message],
    responses: tuple[str, str],
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    instructions: tuple[str, ...],
) -> RenderedPair:
    """Render a chat, without and under each instruction, and both responses after it.

    Raises:
        ValueError: the template does not write an instruction, or ends this chat in its own way.
    """
    place = f"row {row}"
    prompt = prompt_messages(messages, chat)
    prompts = [render(tokenizer, chat.template, prompt, add_generation_prompt=True)]
    for instruction in instructions:
        view = prompt_messages(messages, chat, instruction)
        prompts.append(render(tokenizer, chat.template, view, add_generation_prompt=True))
        if instruction not in prompts[-1]:
            raise ValueError(
                f"{place}: the chat template does not write the instruction "
                f"{instruction[:60]!r} as it was given. Give another chat_template, "
                "or the instruction in plain characters."
            )
    wholes = []
    for response in responses:
        answer = {"role": "assistant", "content": response}
        whole = render(tokenizer, chat.template, [*prompt, answer])
        text = response_text(whole, prompts[0], place, chat.template)
        if not text.endswith(chat.after_response):
            raise ValueError(
                f"{place}: the chat template ends this chat with {text[-40:]!r}, and others with "
                f"{chat.after_response!r}, so it cannot be told where the response ends."
            )
        wholes.append(whole[: len(whole) - len(chat.after_response)] + chat.turn_end)
    return RenderedPair(tuple(prompts), (wholes[0], wholes[1]))


def encode(
    pairs: list[RenderedPair], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[tuple[list[int], ...]], list[tuple[list[int], list[int]]]]:
    """Ids of every view of the prompts, and of both responses, pair by pair."""
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
    """Ids of each prompt and of its response, end of turn included, as rows hold them.

    Raises:
        ValueError: the template refuses a chat.
    """
    chat = chat_format(tokenizer, chat_template)
    rendered = [
        render_pair(row, messages, (response, response), tokenizer, chat, ())
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
    """The ids after the prompt's; if a token lies across the boundary, those of the rest alone."""
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
    """Whether the first `count` tokens, the number the prompt has alone, end at the boundary.

    Offsets alone cannot tell: some tokenizers leave blanks out of them, so a token that holds the
    prompt's last blank and the response's first word looks like the response's.
    """
    # Two places are asked for: the offsets of all tokens take longer than the tokens.
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
