"""Responses and two models -> records of shifted tokens in a file, resumable.

Each record is one response: its prompt, and for every token what it writes, its rank, and the
base's own choice.
"""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rahf.generation.answers import answering, answers, end_ids, pad_id, token_bar
from rahf.generation.decoding import Decoding
from rahf.generation.record_file import ResumableFile
from rahf.interpret.explanations.tokens import TokenTexts
from rahf.interpret.token_shift.kinds import token_kinds
from rahf.interpret.token_shift.shift import Shift, bucket_of, token_shift


class Spoken(NamedTuple):
    """A response in ids, in the place `row` of the file of prompts."""

    row: int
    prompt: list[int]
    response: list[int]


BAR = "token shift"

SpokenResponses = Callable[[Sequence[int]], Iterator[Spoken]]
"""Function from rows to their responses, in any order."""


def greedy_responses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch_size: int,
) -> SpokenResponses:
    """Return the source of the aligned model's own greedy responses."""

    def respond(rows: Sequence[int]) -> Iterator[Spoken]:
        decoding, done = Decoding(max_new_tokens), len(prompts) - len(rows)
        with token_bar(len(prompts), decoding, done, desc=BAR) as bar:
            options = {"batch_size": batch_size, "only": rows, "advance": bar.update}
            for row, answer in answers(model, tokenizer, prompts, decoding, **options):
                yield Spoken(row, prompts[row], answer.ids)

    return respond


def given_responses(
    ids: Sequence[tuple[list[int], list[int]]], max_new_tokens: int
) -> SpokenResponses:
    """Return the source of given responses, ids of prompt and response, cut like generated ones."""
    spoken = [Spoken(row, *given) for row, given in enumerate(ids)]
    spoken = [each._replace(response=each.response[:max_new_tokens]) for each in spoken]

    def respond(rows: Sequence[int]) -> Iterator[Spoken]:
        sizes = [len(each.prompt) + len(each.response) for each in spoken]
        total, left = sum(sizes), sum(sizes[row] for row in rows)
        options = {"initial": total - left, "unit": "tok", "unit_scale": True, "desc": BAR}
        with tqdm(total=total, **options) as bar:
            for row in rows:
                yield spoken[row]
                bar.update(sizes[row])

    return respond


def without_unwritten_ends(
    ids: Sequence[tuple[list[int], list[int]]], finished: Sequence[bool], ends: Collection[int]
) -> list[tuple[list[int], list[int]]]:
    """Return the ids of prompts and responses without the ends of text that no model wrote.

    Args:
        finished: whether the model ended the response itself.
        ends: ids that end a text.
    """
    return [
        (prompt, response if ended or response[-1] not in ends else response[:-1])
        for (prompt, response), ended in zip(ids, finished, strict=True)
    ]


def write_shifts(
    aligned: nn.Module,
    base: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: SpokenResponses,
    file: ResumableFile,
    batch_size: int = 8,
) -> None:
    """Measure every response that `file` does not hold yet, and finish it.

    Args:
        prompts: as text, for the records.
    """
    known = {record["row"] for record in file.records}
    rest = [row for row in range(len(prompts)) if row not in known]
    ends = {*end_ids(aligned, tokenizer)}
    file.begin()
    with answering(aligned):
        for batch in _batches(responses(rest), batch_size):
            shifts = token_shift(
                aligned,
                base,
                [spoken.prompt for spoken in batch],
                [spoken.response for spoken in batch],
                pad_id(tokenizer),
                [spoken.row for spoken in batch],
            )
            file.add(
                shift_record(spoken, prompts[spoken.row], shift, tokenizer, ends)
                for spoken, shift in zip(batch, shifts, strict=True)
            )
    records = sorted(file.records, key=lambda record: record["row"])
    file.finish("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def shift_record(
    spoken: Spoken,
    prompt: str,
    shift: Shift,
    tokenizer: PreTrainedTokenizerBase,
    ends: set[int],
) -> dict[str, Any]:
    """Return what is kept of a response: text and figures of each token.

    KL and log-probabilities have five decimals.
    """
    ended = [token in ends for token in spoken.response]
    pieces, shown = text_pieces(tokenizer, spoken.response), TokenTexts(tokenizer).shown
    return {
        "row": spoken.row,
        "prompt": prompt,
        "pieces": pieces,
        "kind": token_kinds(pieces, ended),
        "base_choice": [shown(token) for token in shift.base_choice.tolist()],
        "bucket": [bucket_of(rank) for rank in shift.base_rank.tolist()],
        "base_rank": shift.base_rank.tolist(),
        "aligned_rank": shift.aligned_rank.tolist(),
        **{
            name: [round(value, 5) for value in getattr(shift, name).tolist()]
            for name in ("kl", "base_logprob", "aligned_logprob")
        },
    }


def text_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds; joined, they are the full text.

    A token that ends within a character adds nothing; the one that completes it adds all of it.
    """
    pieces, written = [], ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count])
        whole = count == len(ids) or not text.endswith("\ufffd")
        pieces.append(text[len(written) :] if whole else "")
        written = text if whole else written
    return pieces


def _batches(items: Iterator[Spoken], size: int) -> Iterator[list[Spoken]]:
    batch: list[Spoken] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
