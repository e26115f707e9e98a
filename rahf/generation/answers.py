"""Text from a model: answers to prompts, and free text for the retain term. Knows models and ids;
knows no method.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rahf.generation.decoding import Decoding, decode, row_uniforms
from rahf.generation.reading import reading_of
from rahf.generation.unfinished import Prefix
from rahf.models.adapters import pad_id


class Answer(NamedTuple):
    """What a model wrote after a prompt."""

    text: str
    ids: list[int]  # all that was written, the end or stop included
    finished: bool  # ended by itself, not by the limit on tokens


def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    batch_size: int = 16,
    stops: Sequence[str] = (),
    only: Sequence[int] | None = None,
    advance: Callable[[int], object] = bool,
) -> Iterator[tuple[int, Answer]]:
    """Yield answers to prompts given as ids, with their index in `prompts`, as batches are done.

    Prompts of like length are batched together. An answer ends at an end-of-text token or before
    the first of `stops`, and does not depend on the batch size or on other prompts.

    Args:
        only: indices of the prompts to answer; None: all.
        advance: of a progress bar in tokens, see `decode`.

    Raises:
        ValueError: a prompt and its answer need more positions than the model has.
    """
    indices = list(range(len(prompts)) if only is None else only)
    _check_positions(model, [prompts[index] for index in indices], decoding)
    prefix = _shared_prefix(model, prompts) if indices else None
    ended = _ending(model, tokenizer, stops)
    options = {"pad_token_id": pad_id(tokenizer), "ended": ended, "prefix": prefix}
    order = sorted(indices, key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        given, uniforms = [prompts[row] for row in rows], row_uniforms(rows, decoding)
        written = decode(model, given, decoding, uniforms, advance=advance, **options)
        for row, ids in zip(rows, written, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            yield row, Answer(text[: _first_stop(text, stops)], ids, ended(ids))


def _ending(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]
) -> Callable[[list[int]], bool]:
    """Return whether new ids end an answer: by a token of the model's, or by one of `stops`."""
    ends = set(end_ids(model, tokenizer))
    tail = max((len(stop.encode()) for stop in stops), default=0) + TAIL_TOKENS

    def ended(ids: list[int]) -> bool:
        if ids[-1] in ends:
            return True
        last = tokenizer.decode(ids[-tail:], skip_special_tokens=True) if stops else ""
        return _first_stop(last, stops) is not None

    return ended


TAIL_TOKENS = 8
"""A stop of n bytes is within the last n tokens, but for tokens that write nothing."""

WORTH_SHARING = 16
"""Ids that all prompts begin with, from which on computing them once is worth the copying."""


def _shared_prefix(model: nn.Module, prompts: Sequence[list[int]]) -> Prefix | None:
    """Compute the beginning that all prompts share, where it is worth it and the cache allows."""
    shared = shared_beginning(prompts)
    if shared < WORTH_SHARING or not reading_of(model).shares:
        return None
    return Prefix(model, prompts[0][:shared])


def shared_beginning(prompts: Sequence[list[int]]) -> int:
    """Return how many ids all prompts begin with; the last id of each is never shared."""
    if len(prompts) < 2:
        return 0
    # What the first and the last in order share, all between them share.
    first, last = min(prompts), max(prompts)
    shorter = min(map(len, prompts)) - 1
    return next((i for i in range(shorter) if first[i] != last[i]), max(shorter, 0))


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the first of `stops` begins in the text; None where there is none."""
    return min((text.find(stop) for stop in stops if stop in text), default=None)


class TooLongError(ValueError):
    """A prompt that leaves no room for its answer.

    Args:
        facts: what is how long, without a remedy.
    """

    def __init__(self, facts: str):
        super().__init__(f"{facts}. Lower max_new_tokens, or omit the longest prompts.")
        self.facts = facts


def _check_positions(model: nn.Module, prompts: Sequence[list[int]], decoding: Decoding) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts), default=0)
    if positions is not None and longest + decoding.max_new_tokens > positions:
        raise TooLongError(
            f"the longest prompt has {longest} tokens, which with max_new_tokens "
            f"{decoding.max_new_tokens} is more than the model's {positions} positions"
        )


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    stops: Sequence[str] = (),
    extract: Callable[[str], str] = str.strip,
    progress: str | None = None,
) -> list[str]:
    """Return greedy answers to prompts given as ids, in their order.

    Args:
        stops: texts before which an answer ends.
        extract: what the model wrote -> the answer.
    """
    texts, decoding = [""] * len(prompts), Decoding(max_new_tokens)
    options = {"desc": progress, "disable": progress is None, "leave": False}
    with answering(model), token_bar(len(prompts), decoding, **options) as bar:
        for index, answer in answers(
            model,
            tokenizer,
            prompts,
            decoding,
            batch_size=batch_size,
            stops=stops,
            advance=bar.update,
        ):
            texts[index] = extract(answer.text)
    return texts


def generate_one(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    decoding: Decoding,
    stops: Sequence[str] = (),
) -> str:
    """Return what the model writes after one prompt given as ids."""
    with answering(model):
        [(_, answer)] = answers(model, tokenizer, [prompt], decoding, stops=stops)
    return answer.text


def token_bar(rows: int, decoding: Decoding, known: int = 0, **options: Any) -> tqdm:
    """Return a progress bar in tokens: rows of a batch end together, so rows are no measure.

    Args:
        known: rows that are written already.
    """
    total, initial = (count * decoding.max_new_tokens for count in (rows, known))
    return tqdm(total=total, initial=initial, unit="tok", unit_scale=True, **options)


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Turn dropout off while answers are made, and restore the training mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


LEAST_SAMPLED = 8
"""Tokens after the first that a sampled text has at least: a shorter one shows little."""


def sample_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int,
    tokens: int,
    seed: int,
    batch_size: int = 32,
    progress: bool = True,
) -> list[list[int]]:
    """Return ids of texts that the model writes after its first token only, at temperature 1.

    `progress` shows a bar.

    They show what the model does anyway and need no data: rows for the retain term. They depend on
    the seed, not on the batch size.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ends, decoding = end_ids(model, tokenizer), Decoding(tokens - 1, temperature=1.0, seed=seed)
    texts: list[list[int]] = []
    options = {"desc": "retained texts", "disable": not progress}
    with answering(model), token_bar(rows, decoding, **options) as bar:
        for first in range(0, rows, batch_size):
            drawn = range(first, min(first + batch_size, rows))
            written = decode(
                model,
                [[start]] * len(drawn),
                decoding,
                row_uniforms(drawn, decoding),
                pad_token_id=pad_id(tokenizer),
                ended=lambda ids: ids[-1] in ends,
                later=(ends, LEAST_SAMPLED),
                advance=bar.update,
            )
            texts += [[start, *ids] for ids in written]
    return texts


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a text: the model's, and the tokenizer's, as in training."""
    of_model = model.generation_config.eos_token_id
    of_model = of_model if isinstance(of_model, list) else [of_model]
    return sorted({token for token in (*of_model, tokenizer.eos_token_id) if token is not None})
