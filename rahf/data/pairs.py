"""Preference formats -> one form: a chat before the response, and the two responses.

What TRL, HH-RLHF and UltraFeedback call a preference row becomes `row, prompt, chosen, rejected,
dropped`: `prompt` is a list of `{role, content}` messages, the responses are text, `dropped` is
null or the reason why the row cannot be used. Knows no file, no tokenizer and no model.

A fault of the *data set* (a column is missing, a value has the wrong type) raises: the wrong data
was given, and going on would hide it. A fault of a *row* (empty, identical sides, no shared prompt)
drops that row: the row stays in place with its number and reason, so that it is counted and named,
and only the tokenisation leaves it out.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rahf.data.cached_map import cached_map
from rahf.data.messages import Message, as_messages, check_type, is_transcript, turns_of

if TYPE_CHECKING:
    from datasets import Dataset, Features

PAIR_COLUMNS = ("prompt", "chosen", "rejected")
PAIR_FORM_VERSION = 1  # part of every cache key: raise it when a row comes out differently


class UnusablePairError(ValueError):
    """The row is of the right type, but no pair can be made of it; the text is the reason shown in
    the report."""


def pair_features() -> "Features":
    """Column types of normalised pairs."""
    from datasets import Features, List, Value

    text = Value("string")
    message = {"role": text, "content": text}
    return Features(
        {
            "row": Value("int64"),
            "prompt": List(message),
            "chosen": text,
            "rejected": text,
            "dropped": text,
        }
    )


def normalize_row(record: Mapping[str, Any], row: int, where: str) -> dict[str, Any]:
    """One row of any supported format -> one normalised row.

    Formats, told apart by the values: messages or text, with a prompt column or without; text that
    begins with "Human:" is a transcript. Text is stripped at both ends, since blanks there are the
    joint between prompt and response, which the chat template writes; messages are left as they
    are. A prompt given as text becomes one user message.

    `where` names the row in errors. Raises ValueError for a value of the wrong type.
    """
    try:
        prompt, chosen, rejected = _pair(record, where)
    except UnusablePairError as unusable:
        return {"row": row, "prompt": [], "chosen": "", "rejected": "", "dropped": str(unusable)}
    return {"row": row, "prompt": prompt, "chosen": chosen, "rejected": rejected, "dropped": None}


def normalize_pairs(
    dataset: "Dataset",
    *,
    columns: Mapping[str, str] | None = None,
    where: str = "the data set",
    cache_dir: str | Path | None = None,
) -> "Dataset":
    """All rows of a data set in memory or from the Hub -> normalised rows, in the same order, none
    left out.

    `columns` maps wanted names to given ones. A data set that is normalised already comes back as
    it is.
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise ValueError(f"{where} is a {type(dataset).__name__}; give one split of it, a Dataset.")
    if set(pair_features()) <= set(dataset.column_names) and columns is None:
        return dataset
    if len(dataset) == 0:
        raise ValueError(f"{where} has no rows.")
    return cached_map(
        _rename_columns(dataset, columns, where),
        partial(_normalize_batch, where=where),
        key={"step": "pairs", "version": PAIR_FORM_VERSION},
        features=pair_features(),
        cache_dir=cache_dir,
        desc="reading pairs",
    )


def usable_pairs(pairs: "Dataset") -> "Dataset":
    """The normalised rows that are not dropped."""
    kept = [index for index, reason in enumerate(pairs["dropped"][:]) if reason is None]
    return pairs if len(kept) == len(pairs) else pairs.select(kept)


def without_held_out(pairs: "Dataset", share: float, most: int) -> tuple["Dataset", "Dataset"]:
    """Return the pairs that are left, and a held-out share, apart by their prompts.

    A prompt's hash decides: the held-out prompts are the same in every run, and few of them change
    when pairs are added. Dropped rows stay with those that are left. Pairs that all have one prompt
    are held out one by one.

    Args:
        share: of the distinct prompts; at least one is held out where there are two.
        most: prompts that are held out.
    """
    keys = _keys(pairs, ("prompt",))
    if len(set(keys) - {None}) < 2:
        keys = _keys(pairs, PAIR_COLUMNS)
    distinct = sorted(set(keys) - {None})
    count = min(max(1, round(share * len(distinct))), most, len(distinct) - 1)
    held = set(distinct[: max(0, count)])
    inside = [index for index, key in enumerate(keys) if key in held]
    outside = [index for index, key in enumerate(keys) if key not in held]
    return pairs.select(outside), pairs.select(inside)


def _keys(pairs: "Dataset", columns: Sequence[str]) -> list[bytes | None]:
    """Return a hash of some columns of each row; None for a dropped one."""
    values = zip(*(pairs[name][:] for name in columns), strict=True)
    return [
        hashlib.sha256(json.dumps(row).encode()).digest() if reason is None else None
        for row, reason in zip(values, pairs["dropped"][:], strict=True)
    ]


def check_columns(
    present: list[str], columns: Mapping[str, str] | None, where: str
) -> dict[str, str]:
    """{wanted: given} for the pair columns that `where` has; ValueError where `chosen` or
    `rejected` is missing."""
    mapping = dict(columns or {})
    unknown = [wanted for wanted in mapping if wanted not in PAIR_COLUMNS]
    if unknown:
        raise ValueError(
            f"columns: {unknown[0]!r} is not a column of preference pairs. Map "
            f"{', '.join(PAIR_COLUMNS)} to the names in the data: columns: {{wanted: given}}."
        )
    for wanted, given in mapping.items():
        if given not in present:
            raise ValueError(
                f"columns: {wanted} should come from {given!r}, but {where} has no such "
                f"column. It has: {_listed(present)}."
            )
    taken = set(mapping.values())
    for wanted in PAIR_COLUMNS:
        if wanted not in mapping and wanted in present and wanted not in taken:
            mapping[wanted] = wanted
    missing = [wanted for wanted in ("chosen", "rejected") if wanted not in mapping]
    if missing:
        example = ", ".join(f"{wanted}: <name>" for wanted in missing)
        raise ValueError(
            f"{where} has no column {' and no column '.join(missing)}. It has: {_listed(present)}. "
            f"If they have other names, say which: columns: {{{example}}}."
        )
    if len(set(mapping.values())) < len(mapping):
        raise ValueError(f"columns: {mapping} takes two columns from one. Give each its own.")
    return mapping


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "no columns"


def _rename_columns(dataset: "Dataset", columns: Mapping[str, str] | None, where: str) -> "Dataset":
    from datasets import Value

    mapping = check_columns(dataset.column_names, columns, where)
    for wanted, given in mapping.items():
        if dataset.features[given] == Value("null"):
            raise ValueError(
                f"{where}: the column {given!r} (used as {wanted}) is empty in all "
                f"{len(dataset)} rows."
            )
    selected = dataset.select_columns(list(mapping.values()))
    return selected.rename_columns({given: wanted for wanted, given in mapping.items()})


def _normalize_batch(batch: dict[str, list], rows: list[int], where: str) -> dict[str, list]:
    normalized = [
        normalize_row(
            {name: values[i] for name, values in batch.items()}, row, f"{where}, row {row}"
        )
        for i, row in enumerate(rows)
    ]
    return {name: [pair[name] for pair in normalized] for name in pair_features()}


def _pair(record: Mapping[str, Any], where: str) -> tuple[list[Message], str, str]:
    prompt, chosen, rejected = (record.get(name) for name in PAIR_COLUMNS)
    for name, value in zip(PAIR_COLUMNS, (prompt, chosen, rejected), strict=True):
        check_type(name, value, where)
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if _is_blank(value):
            raise UnusablePairError(f"{name} is empty")
    explicit = "prompt" in record
    if explicit and _is_blank(prompt):
        raise UnusablePairError("the prompt is empty")

    sides = (chosen, rejected)
    if any(isinstance(value, list) for value in (prompt, *sides)):
        context, chosen, rejected = _split_messages(
            prompt, *(as_messages(s, "assistant") for s in sides)
        )
    elif all(is_transcript(side) and "\n\nAssistant:" in side for side in sides):
        context, chosen, rejected = _split_messages(None, turns_of(chosen), turns_of(rejected))
        chosen, rejected = chosen.strip(), rejected.strip()
    elif explicit:
        context, chosen, rejected = as_messages(prompt, "user"), chosen.strip(), rejected.strip()
    else:
        context, chosen, rejected = _split_text(chosen, rejected)
    return _checked(context, chosen, rejected)


def _checked(prompt: list[Message], chosen: str, rejected: str) -> tuple[list[Message], str, str]:
    # An empty system message is how many sets say "none"; left in, it would switch off the
    # template's own.
    prompt = [m for m in prompt if m["role"] != "system" or m["content"].strip()]
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if not response.strip():
            raise UnusablePairError(f"{name} is empty")
    if chosen.strip() == rejected.strip():
        raise UnusablePairError("chosen and rejected are identical")
    if not any(message["role"] == "user" for message in prompt):
        raise UnusablePairError("the prompt holds no user message")
    if any(not message["content"].strip() for message in prompt):
        raise UnusablePairError("a message of the prompt is empty")
    return prompt, chosen, rejected


def _is_blank(value: str | list | None) -> bool:
    return not (value.strip() if isinstance(value, str) else value)


def _split_messages(
    prompt: str | list[dict] | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], str, str]:
    """The shared messages are the prompt; each side must then hold one assistant message and no
    more.

    A side may be the response alone (the prompt column goes in front of it) or the whole chat, as
    in UltraFeedback, where the prompt column repeats a message of it.
    """
    start = as_messages(prompt, "user")
    whole = [
        side
        if side[: len(start)] == start
        or (isinstance(prompt, str) and side[0]["role"] != "assistant")
        else start + side
        for side in (chosen, rejected)
    ]
    if isinstance(prompt, str) and any(start[-1] not in side for side in _stripped(whole)):
        raise UnusablePairError("the prompt column is not among the messages")
    chosen, rejected = whole
    if chosen == rejected:
        raise UnusablePairError("chosen and rejected are identical")
    shorter, shared = min(len(chosen), len(rejected)), _shared_length(chosen, rejected)
    if shared == shorter:
        raise UnusablePairError("one side is the beginning of the other, so one has no response")
    if shared + 1 != len(chosen) or shared + 1 != len(rejected):
        raise UnusablePairError("the sides differ in more than the last message")
    if shared == 0:
        raise UnusablePairError("the sides share no prompt")
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise UnusablePairError("the last message is not the assistant's")
    return chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]


def _stripped(chats: list[list[Message]]) -> list[list[Message]]:
    return [[{"role": m["role"], "content": m["content"].strip()} for m in chat] for chat in chats]


def _split_text(chosen: str, rejected: str) -> tuple[list[Message], str, str]:
    """The longest shared beginning that ends between two words is the prompt."""
    if chosen.strip() == rejected.strip():
        raise UnusablePairError("chosen and rejected are identical")
    end = _shared_length(chosen, rejected)
    if not chosen[end:].strip() or not rejected[end:].strip():
        raise UnusablePairError(
            "one side is the beginning of the other, so the prompt cannot be told from the response"
        )
    while end > 0 and not _between_words(chosen, rejected, end):
        end -= 1
    if not chosen[:end].strip():
        raise UnusablePairError("the sides share no prompt")
    return (
        [{"role": "user", "content": chosen[:end].strip()}],
        chosen[end:].strip(),
        rejected[end:].strip(),
    )


def _between_words(chosen: str, rejected: str, end: int) -> bool:
    return chosen[end - 1].isspace() or (chosen[end].isspace() and rejected[end].isspace())


def _shared_length(first: Sequence, second: Sequence) -> int:
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)
