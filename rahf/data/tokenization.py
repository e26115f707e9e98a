"""Normalised pairs -> token ids: a prompt, two responses, and the prompt under each instruction.

Each side is rendered once, prompt and response together, and tokenised once; the response is what
lies after the rendered prompt, up to and including the token that ends the turn. So there is one
BOS at most, no marker is cut off, and every view of a pair carries the same response ids. Knows no
method and no model; never pads.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rahf.data.cached_map import cached_map
from rahf.data.chat_format import (
    ChatFormat,
    Message,
    TemplateRefusalError,
    chat_format,
    prompt_messages,
    render,
    response_text,
)
from rahf.data.pairs import normalize_pairs
from rahf.data.records import read_records
from rahf.data.summary import SIDES, DataReport, dropped_text, summarize

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

TOKENIZATION_VERSION = 1  # part of the cache key: raise it when a row comes out differently


@dataclass(frozen=True)
class _Limits:
    prompt: int | None  # of the prompt without an instruction
    total: int | None  # of the longest view of the prompt and the response


@dataclass(frozen=True)
class _RenderedPair:
    prompts: tuple[str, ...]  # without an instruction, then under each
    wholes: tuple[str, str]  # prompt and response, ending with the turn


def tokenize_pairs(
    dataset: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_prompt_length: int | None = None,
    max_length: int | None = None,
    instructions: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
) -> tuple["Dataset", DataReport]:
    """Rows `row, prompt_ids, chosen_ids, rejected_ids` and `<name>_prompt_ids` an instruction.

    `dataset`: what `load_pairs` gives, or any data set in a supported preference format. A prompt
    that was given as text is one user message here, since everything goes through a chat template:
    `chat_template` (text or file), else the tokenizer's, else a plain one.

    A row is dropped, with a reason in the report, when its prompt is longer than
    `max_prompt_length` (counted without instruction) or leaves no room for a response, when the
    template refuses it, or when nothing is left of the difference between its sides. A response
    that does not fit into `max_length` beside the longest view of its prompt loses its end, in all
    views alike, and with it the end-of-turn token; a prompt is never cut.

    The result is cached; the key holds the data, the tokenizer, the template and every option.
    Raises ValueError when no row is left.
    """
    instructions = _checked_instructions(instructions or {})
    limits = _checked_limits(max_prompt_length, max_length)
    chat = chat_format(tokenizer, chat_template)
    pairs = normalize_pairs(dataset, cache_dir=cache_dir)
    columns = ("prompt_ids", *(f"{name}_prompt_ids" for name in instructions))
    tokenized = cached_map(
        pairs,
        partial(
            _tokenize_batch,
            tokenizer=tokenizer,
            chat=chat,
            instructions=tuple(instructions.values()),
            columns=columns,
            limits=limits,
        ),
        key={
            "step": "tokens",
            "version": TOKENIZATION_VERSION,
            "tokenizer": tokenizer_key(tokenizer),
            "chat": asdict(chat),
            "instructions": list(instructions.items()),
            "limits": asdict(limits),
        },
        features=_row_features(columns),
        num_proc=num_proc,
        cache_dir=cache_dir,
        desc="tokenizing pairs",
    )
    return _kept_rows(tokenized)


def tokenize_responses(
    chats: Sequence[Sequence[Message]],
    responses: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    chat_template: str | None = None,
) -> list[tuple[list[int], list[int]]]:
    """Ids of each prompt and of its response, end of turn included, as `tokenize_pairs` makes them.

    Raises:
        ValueError: the template refuses a chat.
    """
    chat = chat_format(tokenizer, chat_template)
    rendered = [
        _render_pair(row, messages, (response, response), tokenizer, chat, ())
        for row, (messages, response) in enumerate(zip(chats, responses, strict=True))
    ]
    prompts, sides = _encode(rendered, tokenizer)
    return [(views[0], ids[0]) for views, ids in zip(prompts, sides, strict=True)]


def tokenizer_key(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of all that decides which ids a text gets; calls that padded or cut leave it alone."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.pop("padding", None)
    backend.pop("truncation", None)
    content = json.dumps([backend, tokenizer.special_tokens_map], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def tokenize_texts(
    path: str | Path, tokenizer: "PreTrainedTokenizerBase", rows: int, tokens: int
) -> list[list[int]]:
    """Ids of the first `rows` texts of a file, each cut after `tokens`; no template is applied.

    The file holds records with a `text` (jsonl, json, csv, also gzipped). Texts of fewer than two
    tokens, which predict nothing, are passed over. Raises ValueError for a record without a text.
    """
    texts = []
    for place, record in read_records(Path(path)):
        text = record.get("text")
        if not isinstance(text, str):
            raise ValueError(
                f"{place}: {'no text' if text is None else 'text is ' + type(text).__name__}; "
                f"every record needs a `text`. It has: {', '.join(record)}."
            )
        ids = tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"][:tokens]
        texts += [ids] if len(ids) > 1 else []
        if len(texts) == rows:
            break
    if not texts:
        raise ValueError(f"{path} holds no text of at least two tokens.")
    return texts


def _checked_instructions(instructions: Mapping[str, str]) -> dict[str, str]:
    for name, text in instructions.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"The instruction {name!r} is {text!r}; give the text of it.")
    # Templates trim what they are given; a blank at an end would then be missing in some of them.
    return {name: text.strip() for name, text in instructions.items()}


def _checked_limits(max_prompt_length: int | None, max_length: int | None) -> _Limits:
    for name, value in (("max_prompt_length", max_prompt_length), ("max_length", max_length)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; give a number of tokens above 0, or null.")
    if max_prompt_length is not None and max_length is not None and max_length <= max_prompt_length:
        raise ValueError(
            f"max_length ({max_length}) counts prompt and response together, so it must be above "
            f"max_prompt_length ({max_prompt_length})."
        )
    return _Limits(max_prompt_length, max_length)


def _row_features(columns: Sequence[str]) -> "Features":
    from datasets import Features, List, Value

    ids = List(Value("int32"))
    names = (*columns, *(f"{side}_ids" for side in SIDES))
    return Features(
        {
            "row": Value("int64"),
            **dict.fromkeys(names, ids),
            "shortened": Value("bool"),
            "dropped": Value("string"),
        }
    )


def _kept_rows(tokenized: "Dataset") -> tuple["Dataset", DataReport]:
    import pyarrow.compute as pc

    reasons = tokenized["dropped"][:]
    report = summarize(
        tokenized["row"][:],
        reasons,
        tokenized["shortened"][:],
        {
            name.removesuffix("_ids"): pc.list_value_length(tokenized.data.column(name)).to_numpy()
            for name in tokenized.column_names
            if name.endswith("_ids")
        },
    )
    if report.kept == 0:
        raise ValueError(
            f"No pair is left of {report.loaded:,}:\n{dropped_text(report.dropped)}\n"
            "Rows count from 0. Look at them in the data, or raise the limits."
        )
    rows = tokenized.remove_columns(["dropped", "shortened"])
    if report.kept < report.loaded:
        rows = rows.select(np.flatnonzero([reason is None for reason in reasons]).tolist())
    return rows, report


def _tokenize_batch(
    batch: dict[str, list],
    _: list[int],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    instructions: tuple[str, ...],
    columns: tuple[str, ...],
    limits: _Limits,
) -> dict[str, list]:
    reasons: list[str | None] = list(batch["dropped"])
    rendered: dict[int, _RenderedPair] = {}
    for i, reason in enumerate(reasons):
        if reason is None:
            try:
                rendered[i] = _render_pair(
                    batch["row"][i],
                    batch["prompt"][i],
                    (batch["chosen"][i], batch["rejected"][i]),
                    tokenizer,
                    chat,
                    instructions,
                )
            except TemplateRefusalError as refusal:
                reasons[i] = str(refusal)
    prompts, responses = _encode(list(rendered.values()), tokenizer)
    empty: dict[str, list[int]] = {name: [] for name in (*columns, "chosen_ids", "rejected_ids")}
    rows = [{**empty, "shortened": False} for _ in reasons]
    for i, views, sides in zip(rendered, prompts, responses, strict=True):
        reasons[i], sides_cut = _fit(views, sides, limits)
        if reasons[i] is None:
            rows[i].update(zip(columns, views, strict=True))
            rows[i].update(chosen_ids=sides_cut[0], rejected_ids=sides_cut[1])
            rows[i]["shortened"] = sides_cut != sides
    names = (*empty, "shortened")
    return {
        "row": batch["row"],
        **{name: [row[name] for row in rows] for name in names},
        "dropped": reasons,
    }


def _render_pair(
    row: int,
    messages: Sequence[Message],
    responses: tuple[str, str],
    tokenizer: "PreTrainedTokenizerBase",
    chat: ChatFormat,
    instructions: tuple[str, ...],
) -> _RenderedPair:
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
    return _RenderedPair(tuple(prompts), (wholes[0], wholes[1]))


def _encode(
    pairs: list[_RenderedPair], tokenizer: "PreTrainedTokenizerBase"
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
        for side in range(len(SIDES))
    ]
    return prompts, list(zip(*sides, strict=True))


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


def _fit(
    views: Sequence[list[int]], sides: tuple[list[int], list[int]], limits: _Limits
) -> tuple[str | None, tuple[list[int], list[int]]]:
    """A reason to drop the row, or None, and the responses cut to the room beside the prompt."""
    chosen, rejected = sides
    if limits.prompt is not None and len(views[0]) > limits.prompt:
        return f"the prompt is longer than max_prompt_length ({limits.prompt} tokens)", sides
    if chosen == rejected:
        return "chosen and rejected have the same tokens", sides
    if limits.total is not None:
        room = limits.total - max(map(len, views))
        if room < 1:
            return f"the prompt leaves no room within max_length ({limits.total} tokens)", sides
        chosen, rejected = chosen[:room], rejected[:room]
        if chosen == rejected:
            return f"the sides differ only after max_length ({limits.total} tokens)", sides
    return None, (chosen, rejected)
