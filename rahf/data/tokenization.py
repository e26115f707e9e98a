"""Normalised pairs -> rows of token ids: a prompt, two responses, and the prompt under each
instruction.

Says which rows are dropped or shortened, and why; the ids themselves are made in `response_ids`.
Knows no method and no model; never pads.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rahf.data.cached_map import cached_map
from rahf.data.chat_format import ChatFormat, TemplateRefusalError, chat_format
from rahf.data.pairs import normalize_pairs, whole_pair
from rahf.data.records import read_records
from rahf.data.rendered_already import control_tokens, foreign_marks, rendered_already
from rahf.data.response_ids import RenderedPair, encode, render_pair
from rahf.data.summary import SIDES, DataReport, dropped_text, summarize

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

TOKENIZATION_VERSION = 2  # part of the cache key: raise it when a row comes out differently


@dataclass(frozen=True)
class _Limits:
    prompt: int | None  # of the prompt without an instruction
    total: int | None  # of the longest view of the prompt and the response


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
    """Return rows `row, prompt_ids, chosen_ids, rejected_ids`, and the report. Each instruction
    adds a column `<name>_prompt_ids`.

    A row is dropped, with a reason in the report: its prompt is too long or leaves no room for a
    response, the template refuses it, or its sides do not differ. A response beyond `max_length`
    loses its end; a prompt is never cut. The cache is keyed by everything that decides the rows.

    Args:
        dataset: what `load_pairs` gives, or pairs in another supported preference format.
        max_prompt_length: tokens of the prompt without an instruction.
        max_length: tokens of the longest view of the prompt and the response.
        chat_template: text or file; None: the tokenizer's, or a plain one where it has none.

    Raises:
        ValueError: no row is left; an instruction or a limit that cannot be.
    """
    instructions = _checked_instructions(instructions or {})
    limits = _checked_limits(max_prompt_length, max_length)
    make = _RowMaker(tokenizer, chat_format(tokenizer, chat_template), instructions, limits)
    tokenized = cached_map(
        normalize_pairs(dataset, cache_dir=cache_dir),
        make,
        key=make.key(),
        features=_row_features(make.columns),
        num_proc=num_proc,
        cache_dir=cache_dir,
        desc="tokenizing pairs",
    )
    return _kept_rows(tokenized, make.chat.notes())


def tokenizer_key(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a hash of all that decides the ids of a text; padding and cutting do not count."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.pop("padding", None)
    backend.pop("truncation", None)
    content = json.dumps([backend, tokenizer.special_tokens_map], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def tokenize_texts(
    path: str | Path, tokenizer: "PreTrainedTokenizerBase", rows: int, tokens: int
) -> list[list[int]]:
    """Return ids of the first `rows` texts of a file, each cut after `tokens`, without a template.

    The file holds records with a `text` (jsonl, json, csv, also gzipped). Texts of fewer than two
    tokens, which predict nothing, are skipped. A text may be rendered for this tokenizer: its BOS
    token is not doubled.

    Raises:
        ValueError: a record without a text, or with marks of another model's template; no text.
    """
    texts, foreign, bos = [], foreign_marks(tokenizer), tokenizer.bos_token_id
    for place, record in read_records(Path(path)):
        text = record.get("text")
        if not isinstance(text, str):
            raise ValueError(
                f"{place}: {'no text' if text is None else 'text is ' + type(text).__name__}; "
                f"every record needs a `text`. It has: {', '.join(record)}."
            )
        mark = next((mark for mark in foreign if mark in text), None)
        if mark is not None:
            raise ValueError(
                f"{place}: the text holds {mark!r}, a mark of another model's chat template: give "
                "plain text, or text rendered for this model."
            )
        ids = tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]
        ids = ids[ids[:2] == [bos, bos] :][:tokens]
        texts += [ids] if len(ids) > 1 else []
        if len(texts) == rows:
            break
    if not texts:
        raise ValueError(f"{path} holds no text of at least two tokens.")
    return texts


@dataclass(frozen=True)
class _RowMaker:
    """A batch of pairs -> their rows."""

    tokenizer: "PreTrainedTokenizerBase"
    chat: ChatFormat
    instructions: Mapping[str, str]
    limits: _Limits

    @cached_property
    def control_tokens(self) -> dict[str, tuple[str, ...]]:
        return control_tokens(self.tokenizer)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("prompt_ids", *(f"{name}_prompt_ids" for name in self.instructions))

    def key(self) -> dict[str, Any]:
        """Return all that decides the rows besides the pairs."""
        return {
            "step": "tokens",
            "version": TOKENIZATION_VERSION,
            "tokenizer": tokenizer_key(self.tokenizer),
            "chat": asdict(self.chat),
            "instructions": list(self.instructions.items()),
            "limits": asdict(self.limits),
        }

    def __call__(self, batch: dict[str, list], _: list[int]) -> dict[str, list]:
        reasons: list[str | None] = list(batch["dropped"])
        rendered = self._rendered(batch, reasons)
        prompts, responses = encode(list(rendered.values()), self.tokenizer)
        names = (*self.columns, "chosen_ids", "rejected_ids")
        rows = [
            {**{name: [] for name in names}, "shortened": False, "ignored": []} for _ in reasons
        ]
        for i, views, sides in zip(rendered, prompts, responses, strict=True):
            reasons[i], sides_cut = _fit(views, sides, self.limits)
            if reasons[i] is None:
                rows[i] = dict(zip(names, (*views, *sides_cut), strict=True))
                rows[i]["shortened"] = sides_cut != sides
                rows[i]["ignored"] = [*batch["ignored"][i], *rendered[i].ignored]
        return {
            "row": batch["row"],
            **{name: [row[name] for row in rows] for name in (*names, "shortened", "ignored")},
            "dropped": reasons,
        }

    def _rendered(
        self, batch: dict[str, list], reasons: list[str | None]
    ) -> dict[int, RenderedPair]:
        """Return the usable pairs by place; writes the template's refusals into `reasons`."""
        rendered: dict[int, RenderedPair] = {}
        for i in [i for i, reason in enumerate(reasons) if reason is None]:
            pair = whole_pair({name: values[i] for name, values in batch.items()})
            reasons[i] = rendered_already(
                pair.prompt,
                {side: batch[side][i] for side in SIDES},
                self.control_tokens,
                (self.chat.user_marker, self.chat.generation_prompt),
            )
            if reasons[i] is not None:
                continue
            try:
                rendered[i] = render_pair(
                    batch["row"][i],
                    pair.prompt,
                    (pair.chosen, pair.rejected),
                    self.tokenizer,
                    self.chat,
                    tuple(self.instructions.values()),
                )
            except TemplateRefusalError as refusal:
                calls = any("tool_calls" in message for message in pair.prompt)
                reasons[i] = f"{refusal} (a chat with tool_calls)" if calls else str(refusal)
        return rendered


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
            "ignored": List(Value("string")),
            "dropped": Value("string"),
        }
    )


def _kept_rows(tokenized: "Dataset", notes: tuple[str, ...]) -> tuple["Dataset", DataReport]:
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
        ignored=tokenized["ignored"][:],
        notes=notes,
    )
    if report.kept == 0:
        raise ValueError(
            f"No pair is left of {report.loaded:,}:\n{dropped_text(report.dropped)}\n"
            "Rows count from 0. Look at them in the data, or raise the limits."
        )
    rows = tokenized.remove_columns(["dropped", "shortened", "ignored"])
    if report.kept < report.loaded:
        rows = rows.select(np.flatnonzero([reason is None for reason in reasons]).tolist())
    return rows, report


def _fit(
    views: Sequence[list[int]], sides: tuple[list[int], list[int]], limits: _Limits
) -> tuple[str | None, tuple[list[int], list[int]]]:
    """Return a reason to drop the row, or None, and the responses cut to the limit."""
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
