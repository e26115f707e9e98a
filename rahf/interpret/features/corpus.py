"""Text as pieces of token ids, each with the positions whose hidden states are read.

A long text is cut into pieces. Special tokens and the first token of a piece are context only:
their states are of a size and a kind of their own in most models and would take up the dictionary.
Knows tokenizers and data; knows no model.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from rahf.artifacts import expanded
from rahf.data.records import RECORD_SUFFIXES, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RUN = 10_000
"""Characters, at least, of the lines of a plain text file that make one document."""

TEXTS_AT_ONCE = 256


class Piece(NamedTuple):
    """A piece of text, read in one forward pass."""

    ids: list[int]
    read: Tensor  # [seq] bool: whether the token's hidden state is read


@dataclass(frozen=True)
class Corpus:
    """Pieces of documents, one after the other."""

    ids: Int32[Tensor, " tokens"]
    read: Bool[Tensor, " tokens"]  # whether the token's hidden state is read
    starts: Int64[Tensor, " pieces_and_one"]  # where each piece begins, and the end
    documents: Int64[Tensor, " pieces"]  # document of each piece, ascending

    @property
    def pieces(self) -> int:
        return len(self.documents)

    def piece(self, index: int) -> Piece:
        place = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return Piece(self.ids[place].tolist(), self.read[place])

    def counts(self) -> Int64[Tensor, " pieces"]:
        """Return the number of tokens that are read of each piece."""
        running = torch.nn.functional.pad(self.read.long().cumsum(0), (1, 0))
        return running[self.starts].diff()


def corpus_of_texts(
    texts: Iterable[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tokens: int,
    length: int,
    every_token: bool = False,
) -> Corpus:
    """Return the pieces of texts, until `tokens` tokens are read or the texts end.

    What the tokenizer puts before a text is put before each of its pieces.

    Args:
        length: tokens of a piece, at most.
        every_token: read special tokens and first tokens too.

    Raises:
        ValueError: no token would be read; a length without room for text.
    """
    prefix = ids_before(tokenizer)
    if length < len(prefix) + 2:
        raise ValueError(
            f"a length of {length} leaves no room for text after the {len(prefix)} tokens that the "
            f"tokenizer puts before it; give at least {len(prefix) + 2}."
        )
    ids_of_texts = _tokenized(texts, tokenizer)
    room = length - len(prefix)
    pieces = (
        (document, [*prefix, *ids[first : first + room]], 0)
        for document, ids in enumerate(ids_of_texts)
        for first in range(0, len(ids), room)
    )
    return _corpus(pieces, tokenizer, tokens, every_token)


def corpus_of_pairs(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tokens: int,
    every_token: bool = False,
) -> Corpus:
    """Return both responses of tokenised pairs after their prompts; only the responses are read.

    A pair is one document. Special tokens of a response, such as its end, are not read.

    Raises:
        ValueError: no token would be read.
    """
    pieces = (
        (document, [*row["prompt_ids"], *row[side]], len(row["prompt_ids"]))
        for document, row in enumerate(rows)
        for side in ("chosen_ids", "rejected_ids")
    )
    return _corpus(pieces, tokenizer, tokens, every_token)


def _corpus(
    pieces: Iterable[tuple[int, list[int], int]],
    tokenizer: "PreTrainedTokenizerBase",
    tokens: int,
    every_token: bool,
) -> Corpus:
    """Return the first (document, ids, tokens of context) that read enough tokens as a corpus."""
    special = torch.tensor(tokenizer.all_special_ids, dtype=torch.int32)
    kept, documents, found = [], [], 0
    for document, ids, context in pieces:
        piece = torch.tensor(ids, dtype=torch.int32)
        read = read_positions(piece, special, every_token)
        read[:context] = False
        if read.any():
            kept.append((piece, read))
            documents.append(document)
            found += int(read.sum())
        if found >= tokens:
            break
    if not kept:
        raise ValueError(
            "the text has no token to read: it is empty, or holds only special tokens and single "
            "tokens. Give more text."
        )
    lengths = torch.tensor([0, *(len(ids) for ids, _ in kept)])
    return Corpus(
        torch.cat([ids for ids, _ in kept]),
        torch.cat([read for _, read in kept]),
        lengths.cumsum(0),
        torch.tensor(documents),
    )


def _tokenized(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[int]]:
    """Yield the ids of each text, without special tokens around it."""
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    texts = iter(texts)
    while batch := list(islice(texts, TEXTS_AT_ONCE)):
        yield from tokenizer(batch, **options)["input_ids"]


def read_positions(
    ids: Int32[Tensor, " seq"], special: Int32[Tensor, " special"], every_token: bool
) -> Bool[Tensor, " seq"]:
    """Return which tokens of a piece are read: all but its first and special ones."""
    if every_token:
        return torch.ones_like(ids, dtype=torch.bool)
    read = ~torch.isin(ids, special)
    read[0] = False
    return read


def ids_before(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids that the tokenizer puts before a text, such as BOS."""
    text = "a"
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    place = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:place]


def split_documents(
    corpus: Corpus, held_out: int, seed: int
) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " held_out"]]:
    """Return the pieces to train on, and those of held-out documents, drawn by the seed.

    Args:
        held_out: tokens that are held out, at most a fifth of all.

    Raises:
        ValueError: all text is one document.
    """
    names, of_piece = corpus.documents.unique(return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            "the text is one document, so none can be held out to measure on: give more texts."
        )
    counts = torch.zeros(len(names), dtype=torch.long).index_add_(0, of_piece, corpus.counts())
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(names)))
    before = counts[order].cumsum(0) - counts[order]
    out = torch.zeros(len(names), dtype=torch.bool)
    out[order[before < min(held_out, int(counts.sum()) // 5)]] = True
    out[order[-1]] = False
    return (~out[of_piece]).nonzero().squeeze(1), out[of_piece].nonzero().squeeze(1)


def texts_of(path: str, split: str = "train", column: str = "text") -> Iterator[str]:
    """Yield the texts of a file, of a folder saved by `datasets`, or of a data set of the Hub.

    A file of records gives the `column` of each; any other file is plain text, of which some lines
    together are a document.

    Raises:
        ValueError: nothing is there; a record has no such text.
    """
    local = expanded(path)
    if local.is_file() and not local.name.endswith((*RECORD_SUFFIXES, ".parquet")):
        return _runs_of_lines(local)
    if local.is_file() and not local.name.endswith(".parquet"):
        return (_text(record, column, place) for place, record in read_records(local))
    rows = _dataset(path, local, split)
    return (_text(row, column, f"{path}, row {index}") for index, row in enumerate(rows))


def _dataset(path: str, local: Path, split: str) -> Iterable[Mapping[str, Any]]:
    from datasets import DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetNotFoundError

    try:
        if local.is_dir():
            saved = load_from_disk(str(local))
            return saved[split] if isinstance(saved, DatasetDict) else saved
        if local.is_file():
            return load_dataset("parquet", data_files=str(local), split="train", streaming=True)
        return load_dataset(path, split=split, streaming=True)
    except (DatasetNotFoundError, FileNotFoundError, KeyError, ConnectionError) as error:
        raise ValueError(
            f"{path!r} is not a file, a folder saved by `datasets` with the split {split!r}, or a "
            f"data set of the Hub that can be reached: {error}"
        ) from error


def _text(record: Mapping[str, Any], column: str, place: str) -> str:
    text = record.get(column)
    if not isinstance(text, str):
        raise ValueError(
            f"{place}: no text in the column {column!r}; it has: {', '.join(record)}. Name the "
            "column of the texts (--column)."
        )
    return text


def _runs_of_lines(path: Path) -> Iterator[str]:
    lines, size = [], 0
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                lines.append(line)
                size += len(line)
                if size >= RUN:
                    yield "".join(lines)
                    lines, size = [], 0
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason}, byte {error.start}): give a text file, or "
            f"records in one of {', '.join(RECORD_SUFFIXES)}."
        ) from error
    if lines:
        yield "".join(lines)
