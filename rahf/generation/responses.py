"""Prompts of a file -> responses of a model in a file, resumable.

Takes a model as it is: whether adapters, steering hooks or nothing is on it is the caller's
context. Knows no method.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from rahf.data.prompts import Prompt, PromptForm, prompt_text, response_layout
from rahf.generation.answers import Answer, answering, answers, token_bar
from rahf.generation.decoding import Decoding
from rahf.generation.record_file import ResumableFile, record_file


def write_responses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    form: PromptForm,
    decoding: Decoding,
    path: Path,
    *,
    generator: str,
    made_with: Mapping[str, Any],
    made_from: Mapping[str, str | None] | None = None,
    made_by: str | None = None,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Answer every prompt and write the responses to `path`, in the prompts' order.

    Each response is kept as soon as it is there. A second call resumes an interrupted one.

    Args:
        generator: name of the model in the file.
        made_with: what else decides the responses (the model), kept beside the file.
        made_from, made_by: identities of files, and the command; see `ResumableFile`.

    Returns:
        Counts (responses, finished ones, mean tokens) and this run's seconds.

    Raises:
        ValueError: the file was made with other settings or from other content; another process
            writes it; its name has no known suffix.
    """
    layout = response_layout(path)
    ids = [form.encode(prompt.messages) for prompt in prompts]
    settings = _settings(made_with, generator, form, ids, decoding)
    start, made = perf_counter(), 0
    with record_file(path, settings, made_from, made_by) as file:
        if not file.complete:
            made = _answer_the_rest(model, tokenizer, ids, form, decoding, file, batch_size)
            records = sorted(file.records, key=lambda record: record["row"])
            file.finish(layout(_shown_with(prompts, generator, records)), **_counts(records))
    return {**file.results(), "made_now": made, "seconds": perf_counter() - start}


def _settings(
    made_with: Mapping[str, Any],
    generator: str,
    form: PromptForm,
    ids: Sequence[list[int]],
    decoding: Decoding,
) -> dict[str, Any]:
    """Return what decides the responses."""
    return {
        **made_with,
        "generator": generator,
        "prompt_form": form.name,
        "prompts": hashlib.sha256(repr(ids).encode()).hexdigest(),  # what the model reads of them
        "decoding": asdict(decoding),
    }


def _answer_the_rest(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    form: PromptForm,
    decoding: Decoding,
    file: ResumableFile,
    batch_size: int,
) -> int:
    known = {record["row"] for record in file.records}
    rest = [row for row in range(len(prompts)) if row not in known]
    file.begin()
    bar = token_bar(len(prompts), decoding, len(known), desc="responses")
    with answering(model), bar:
        for row, answer in answers(
            model,
            tokenizer,
            prompts,
            decoding,
            batch_size=batch_size,
            stops=form.stops,
            only=rest,
            advance=bar.update,
        ):
            file.add([_record(row, answer, form)])
    return len(rest)


def _record(row: int, answer: Answer, form: PromptForm) -> dict[str, Any]:
    return {
        "row": row,
        "response": form.extract(answer.text),
        "tokens": len(answer.ids),
        "finished": answer.finished,
    }


def _shown_with(
    prompts: Sequence[Prompt], generator: str, records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the records of the file: prompt, generator, response."""
    return [
        {**_shown(prompts[record["row"]]), "generator": generator, **record} for record in records
    ]


def _shown(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt for the file: a text where it is one plain message, else messages."""
    plain = len(prompt.messages) == 1 and prompt.messages[0].keys() == {"role", "content"}
    return {"prompt": prompt_text(prompt.messages) if plain else prompt.messages, **prompt.extra}


def _counts(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "responses": len(records),
        "finished": sum(record["finished"] for record in records),
        "mean_tokens": sum(record["tokens"] for record in records) / len(records),
    }
