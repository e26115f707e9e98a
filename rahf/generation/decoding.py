"""Tokens after prompts, a batch at a time: each row is drawn by its own random numbers, ended by
its own stop, and then taken out of the batch.

Knows models and ids; knows no text and no file. What a row gets does not depend on the rows beside
it (up to the rounding of the model's arithmetic).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rahf.generation.reading import reading_of
from rahf.generation.unfinished import Prefix, Unfinished


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen, and when a response is long enough."""

    max_new_tokens: int = 512
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0  # of the likeliest tokens, as few as hold this share of the probability
    top_k: int = 0  # of the likeliest tokens, so many; 0: all
    seed: int = 0

    def __post_init__(self):
        for name, right, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)}; give {wanted}.")


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    uniforms: Float[Tensor, "rows tokens"],
    *,
    pad_token_id: int,
    ended: Callable[[list[int]], bool],
    prefix: Prefix | None = None,
    later: tuple[Sequence[int], int] = ((), 0),
    advance: Callable[[int], object] = bool,
) -> list[list[int]]:
    """Return the ids that `model` writes after each prompt, at most `decoding.max_new_tokens`.

    Args:
        uniforms: what chance each token is drawn by, see `next_tokens`.
        ended: whether a row's new ids are all it has to write; called after every token.
        prefix: what every prompt begins with, followed by at least one id of its own.
        later: ids that are not written among the first tokens, and how many tokens those are.
        advance: is called with the tokens done in a step; those that an ended row saves count.
    """
    device, reading = next(model.parameters()).device, reading_of(model)
    written: list[list[int]] = [[] for _ in prompts]
    for batch in [list(range(len(prompts)))] if reading.pads else _of_one_length(prompts):
        given = [prompts[row] for row in batch]
        rows = Unfinished.prompts(given, pad_token_id, device, prefix, reading.caches)
        going, places = batch, batch  # rows still written; the row at each place of the batch
        for step in range(decoding.max_new_tokens):
            logits = _allowed(rows.logits(model), later[0] if step < later[1] else ())
            tokens = next_tokens(logits, decoding, uniforms[places, step].to(device))
            _append(written, going, zip(places, tokens.tolist(), strict=True))
            before, going = len(going), [row for row in going if not ended(written[row])]
            advance(before + (before - len(going)) * (decoding.max_new_tokens - step - 1))
            if not going:
                break
            kept = [place for place, row in enumerate(places) if row in going or not reading.drops]
            rows.extend(tokens, kept)
            places = [places[place] for place in kept]
    return written


def _append(
    written: Sequence[list[int]], going: Sequence[int], tokens: Iterable[tuple[int, int]]
) -> None:
    for row, token in tokens:
        if row in going:
            written[row].append(token)


def _allowed(
    logits: Float[Tensor, "rows vocab"], excluded: Sequence[int]
) -> Float[Tensor, "rows vocab"]:
    """Return the logits with those of ids that may not be written yet at -infinity."""
    if excluded:
        logits[:, list(excluded)] = -torch.inf
    return logits


def _of_one_length(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Return the places of the prompts, those of one length together."""
    lengths = sorted({len(prompt) for prompt in prompts})
    return [[i for i, p in enumerate(prompts) if len(p) == length] for length in lengths]


def next_tokens(
    logits: Float[Tensor, "rows vocab"], decoding: Decoding, uniforms: Float[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """Return the next token of each row: the likeliest, or a drawn one.

    The drawn token is where the cumulated probability, from the likeliest token down, passes the
    row's uniform number from [0, 1).
    """
    if decoding.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / decoding.temperature).softmax(-1)
    vocab, top_p = logits.shape[-1], decoding.top_p
    if 0 < decoding.top_k < vocab:
        return _drawn(*probabilities.topk(decoding.top_k), uniforms, top_p)
    if vocab <= 2 * LIKELIEST:
        return _drawn(*_in_order(probabilities), uniforms, top_p)
    tokens = _drawn_from_likeliest(probabilities, uniforms, top_p)
    rest = tokens < 0
    if rest.any():
        tokens[rest] = _drawn(*_in_order(probabilities[rest]), uniforms[rest], top_p)
    return tokens


LIKELIEST = 4096
"""Tokens among which nearly every draw falls: all others are put in order only where one does not,
since that takes a CPU as long as a small model takes for its prediction.
"""


def _in_order(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities and tokens from the likeliest down, equal ones by id."""
    return probabilities.sort(descending=True, stable=True)


def _drawn(ranked: Tensor, tokens: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Return a token of each row, drawn from those allowed, which are in order."""
    # In double precision: the sum of many small numbers decides which token is drawn.
    ranked = ranked.double()
    ranked /= ranked.sum(-1, keepdim=True)
    cumulated = ranked.cumsum(-1)
    # A token counts while the likelier ones have not reached the share, so the first always does.
    counted = cumulated - ranked < top_p
    reached = uniforms.double()[:, None] * (ranked * counted).sum(-1, keepdim=True)
    place = torch.searchsorted(cumulated, reached, right=True)
    last = counted.sum(-1, keepdim=True) - 1
    return tokens.gather(-1, torch.minimum(place, last)).squeeze(-1)


def _drawn_from_likeliest(probabilities: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Return what `_drawn` returns, or -1 where the likeliest tokens do not decide it."""
    values, tokens = probabilities.topk(LIKELIEST, sorted=False)
    tokens, by_id = tokens.sort()
    ranked, order = _in_order(values.gather(-1, by_id))
    # Others may be as likely as the last of them, and come before it.
    ranked = ranked.masked_fill(ranked == ranked[:, -1:], 0).double()
    whole, known = probabilities.double().sum(-1), ranked.sum(-1)
    others = torch.cat([ranked, (whole - known)[:, None]], dim=-1)
    drawn = _drawn(
        others, nn.functional.pad(tokens.gather(-1, order), (0, 1), value=-1), uniforms, top_p
    )
    return drawn if top_p == 1 else drawn.where(known >= top_p * whole, -1)


def row_uniforms(rows: Sequence[int], decoding: Decoding) -> Float[Tensor, "rows tokens"]:
    """Return the random numbers of rows, which depend only on the seed and the row's number."""
    if decoding.temperature == 0:
        return torch.zeros(len(rows), decoding.max_new_tokens, dtype=torch.float64)
    return torch.stack(
        [
            torch.from_numpy(
                np.random.default_rng([decoding.seed, row]).random(decoding.max_new_tokens)
            )
            for row in rows
        ]
    )
