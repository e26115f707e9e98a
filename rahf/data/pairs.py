"""Preference formats -> one form: a chat before the response, and the two responses.

What TRL, HH-RLHF and UltraFeedback call a preference row becomes `row, prompt, chosen, rejected,
extra, ignored, dropped`: `prompt` is a list of `{role, content}` messages, the responses are text,
`extra` holds further keys of messages as JSON, `ignored` names what was not read,
`dropped` is null or the reason why the row cannot be used. Knows no file, tokenizer or model.

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
from rahf.data.pair_formats import (
    NO_PROMPT,
    OPTIONAL_COLUMNS,
    PAIR_COLUMNS,
    PROMPT_LIKE_COLUMNS,
    Pair,
    UnusablePairError,
    no_prompt,
    pair_of,
    refuse_media,
)

if TYPE_CHECKING:
    from datasets import Dataset, Features

COLUMNS = (*PAIR_COLUMNS, *OPTIONAL_COLUMNS)
PAIR_FORM_VERSION = 3  # part of every cache key: raise it when a row comes out differently


def pair_features() -> "Features":
    """Return the column types of normalised pairs."""
    from datasets import Features, List, Value

    text = Value("string")
    message = {"role": text, "content": text}
    return Features(
        {
            "row": Value("int64"),
            "prompt": List(message),
            "chosen": text,
            "rejected": text,
            "extra": text,
            "ignored": List(text),
            "dropped": text,
        }
    )


def normalize_row(
    record: Mapping[str, Any], mapping: Mapping[str, str], row: int, where: str
) -> dict[str, Any]:
    """Return the normalised row of a record in any supported format.

    Formats, recognised by the values: messages or text, with a prompt column or without; text that
    begins with "Human:" is a transcript. Text is stripped at both ends, since blanks there are the
    joint between prompt and response, which the chat template writes; messages are left as they
    are. A prompt given as text becomes one user message.

    `where` names the row in errors. Raises ValueError for a value of the wrong type.
    """
    try:
        pair, ignored = pair_of(record, mapping, where)
    except UnusablePairError as unusable:
        empty = {"prompt": [], "chosen": "", "rejected": "", "extra": None, "ignored": []}
        return {"row": row, **empty, "dropped": str(unusable)}
    return {
        "row": row,
        "prompt": [{key: message[key] for key in ("role", "content")} for message in pair.prompt],
        "chosen": pair.chosen["content"],
        "rejected": pair.rejected["content"],
        "extra": _extra(pair),
        "ignored": ignored,
        "dropped": None,
    }


def whole_pair(row: Mapping[str, Any]) -> Pair:
    """Return the pair of a normalised row, its messages with all their keys."""
    extra = json.loads(row["extra"] or "{}")
    prompt = [
        {**message, **extra.get(f"prompt {place}", {})}
        for place, message in enumerate(row["prompt"])
    ]
    chosen, rejected = (
        {"role": "assistant", "content": row[side], **extra.get(side, {})}
        for side in ("chosen", "rejected")
    )
    return Pair(prompt, chosen, rejected)


def _extra(pair: Pair) -> str | None:
    messages = {f"prompt {place}": message for place, message in enumerate(pair.prompt)}
    messages |= {"chosen": pair.chosen, "rejected": pair.rejected}
    extra = {}
    for name, message in messages.items():
        others = {key: message[key] for key in message if key not in ("role", "content")}
        if others:
            extra[name] = others
    return json.dumps(extra, ensure_ascii=False, default=str) if extra else None


def normalize_pairs(
    dataset: "Dataset",
    *,
    columns: Mapping[str, str] | None = None,
    where: str = "the data set",
    cache_dir: str | Path | None = None,
) -> "Dataset":
    """Return all rows of a data set in memory or from the Hub as normalised rows, in their order.

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
    mapping = check_columns(dataset.column_names, columns, where)
    refuse_media(set(dataset.column_names) - set(mapping.values()), where)
    _check_filled(dataset, mapping, where)
    # Columns that are neither read nor refused are not even loaded, only named.
    loaded = {*mapping.values(), *OPTIONAL_COLUMNS, "system_prompt", *PROMPT_LIKE_COLUMNS}
    unread = [name for name in dataset.column_names if name not in loaded]
    return cached_map(
        dataset.remove_columns(unread),
        partial(_normalize_batch, mapping=mapping, unread=unread, where=where),
        key={"step": "pairs", "version": PAIR_FORM_VERSION, "columns": mapping, "unread": unread},
        features=pair_features(),
        cache_dir=cache_dir,
        desc="reading pairs",
    )


def usable_pairs(pairs: "Dataset") -> "Dataset":
    """Return the normalised rows that are not dropped."""
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
    """Return {wanted: given} for the columns that `where` has.

    Raises:
        ValueError: `chosen` or `rejected` is missing; a mapping to a column that is not there.
    """
    mapping = dict(columns or {})
    unknown = [wanted for wanted in mapping if wanted not in COLUMNS]
    if unknown:
        raise ValueError(
            f"columns: {unknown[0]!r} is not a column of preference pairs. Map "
            f"{', '.join(COLUMNS)} to the names in the data: columns: {{wanted: given}}."
        )
    for wanted, given in mapping.items():
        if given not in present:
            raise ValueError(
                f"columns: {wanted} should come from {given!r}, but {where} has no such "
                f"column. It has: {_listed(present)}."
            )
    taken = set(mapping.values())
    for wanted in COLUMNS:
        if wanted not in mapping and wanted in present and wanted not in taken:
            mapping[wanted] = wanted
    missing = [wanted for wanted in ("chosen", "rejected") if wanted not in mapping]
    if missing:
        example = ", ".join(f"{wanted}: <name>" for wanted in missing)
        raise ValueError(
            f"{where} has no column {' and no column '.join(missing)}. It has: {_listed(present)}. "
            f"If they have other names, give them: columns: {{{example}}}."
        )
    if len(set(mapping.values())) < len(mapping):
        raise ValueError(f"columns: {mapping} takes two columns from one. Give each its own.")
    return mapping


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "no columns"


def _check_filled(dataset: "Dataset", mapping: Mapping[str, str], where: str) -> None:
    from datasets import Value

    for wanted in PAIR_COLUMNS:
        given = mapping.get(wanted)
        if given is not None and dataset.features[given] == Value("null"):
            raise ValueError(
                f"{where}: the column {given!r} (used as {wanted}) is empty in all "
                f"{len(dataset)} rows."
            )


def _normalize_batch(
    batch: dict[str, list],
    rows: list[int],
    mapping: Mapping[str, str],
    unread: Sequence[str],
    where: str,
) -> dict[str, list]:
    normalized = []
    for i, row in enumerate(rows):
        record = {name: values[i] for name, values in batch.items()}
        pair = normalize_row(record, mapping, row, f"{where}, row {row}")
        if pair["dropped"] == NO_PROMPT:
            pair["dropped"] = no_prompt(unread)
        if pair["dropped"] is None:
            pair["ignored"] += [f"column {name}" for name in unread]
        normalized.append(pair)
    return {name: [pair[name] for pair in normalized] for name in pair_features()}
