"""Base and aligned models on held-out responses: one model in memory, its adapters switched.

What the dictionary shows of the change and what the rivals show of it come from the same rows, in
one pass. Knows models, ids and dictionaries; knows no text and no file.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from rahf.data.rows import with_context
from rahf.directions.vectors import check_finite_states
from rahf.evaluation.intervals import Estimate, ratio_estimate
from rahf.interpret.features.bases import check_base
from rahf.interpret.features.dictionary import Dictionary, SparseCodes
from rahf.interpret.features.intervention import module_at
from rahf.interpret.features.movement import Moved, Movement, Said
from rahf.interpret.features.rivals import Explained, Rivals
from rahf.models.adapters import frozen_pass
from rahf.models.capture import record
from rahf.models.likelihood import model_inputs, predictions, rows_for
from rahf.terms import kl_divergence

WORSE = 0.02
"""Share of the variance by which a dictionary fits the aligned model worse before it is told."""


class HeldOut(NamedTuple):
    """A held-out response in ids."""

    prompt: int  # number of its prompt: responses to one prompt are one unit of the intervals
    prompt_ids: list[int]
    response_ids: list[int]


class Read(NamedTuple):
    """A batch of responses as base and aligned models read it, token after token."""

    base: Float[Tensor, "tokens d_model"]
    aligned: Mapping[str, Float[Tensor, "tokens d_model"]]
    lengths: list[int]
    divergences: list[float]  # KL(base || first adapter), nats per token, of each response


class Found(NamedTuple):
    """What changed on the held-out responses."""

    moved: Moved
    rivals: Rivals
    fit: dict[str, float | None]  # variance explained of base and aligned states; None: differences
    explained: (
        Explained  # of the per-token differences, on the rows that the rivals are measured on
    )
    divergence: Estimate  # mean KL of predictions, nats per token

    def fits_worse(self) -> bool:
        """Return whether the dictionary fits the aligned model worse than the base."""
        base, aligned = self.fit["base"], self.fit["aligned"]
        return base is not None and aligned < base - WORSE


def find_movement(
    model: PeftModel,
    dictionary: Dictionary,
    adapters: Sequence[str],
    held_out: Sequence[HeldOut],
    pad_token_id: int,
    *,
    placebos: Sequence[str] = (),
    special: Sequence[int] = (),
    batch_size: int = 4,
) -> Found:
    """Read every response as the base and as each adapter, and gather what moved.

    Args:
        adapters: names on the model; the first is reported, the others are seeds beside it.
        placebos: adapters that were trained on shuffled pairs.
        special: ids whose states are not read, as in the training of a dictionary.

    Raises:
        ValueError: a dictionary of another model; responses to fewer than two prompts; states that
            are not finite.
    """
    held_out = [each for each in held_out if set(each.response_ids) - set(special)]
    check_held_out(held_out)
    check_base(dictionary, model)
    names = (*adapters, *placebos)
    movement, rivals = Movement(dictionary.latents, names, placebos), Rivals(dictionary.d_model)
    fits = {name: Explained() for name in ("base", "aligned", "difference")}
    totals: dict[int, list[float]] = {}
    bar = tqdm(total=len(held_out), desc="reading responses", leave=False)
    with bar:
        for measured, batch in batches(held_out, batch_size):
            read = read_batch(model, dictionary, names, batch, pad_token_id, special)
            codes, guess = encoded(dictionary, read)
            (rivals.measure if measured else rivals.fit_to)(read.base, read.aligned[names[0]])
            _fit(fits, dictionary, read, codes, guess, measured)
            for said, tokens in zip(_said(batch, read, codes), read.lengths, strict=True):
                movement.add(said)
                total = totals.setdefault(said.prompt, [0.0, 0.0])
                total[0] += said.divergence * tokens
                total[1] += tokens
            bar.update(len(batch))
    kept = dictionary.origin.kind == "states"
    fit = {name: fits[name].variance() if kept else None for name in ("base", "aligned")}
    divergence = ratio_estimate(*zip(*totals.values(), strict=True))
    return Found(movement.moved(), rivals, fit, fits["difference"], divergence)


def check_held_out(held_out: Sequence[HeldOut]) -> None:
    """Refuse responses that no change can be measured on, before anything runs."""
    prompts = len({each.prompt for each in held_out})
    if prompts < 2:
        raise ValueError(
            f"held-out responses to {prompts} prompts: an interval needs responses with tokens to "
            "at least 2 prompts, and some 30 to be narrow."
        )


def batches(held_out: Sequence[HeldOut], batch_size: int) -> Iterator[tuple[bool, list[HeldOut]]]:
    """Return batches of the half that rivals are fitted to, then of the half that is measured.

    Responses to one prompt follow one another and lie in one half.
    """
    prompts = list(dict.fromkeys(each.prompt for each in held_out))
    for measured in (False, True):
        half = set(prompts[int(measured) :: 2])
        inside = sorted((e for e in held_out if e.prompt in half), key=lambda e: e.prompt)
        for start in range(0, len(inside), batch_size):
            yield measured, inside[start : start + batch_size]


@torch.no_grad()
def read_batch(
    model: PeftModel,
    dictionary: Dictionary,
    adapters: Sequence[str],
    batch: Sequence[HeldOut],
    pad_token_id: int,
    special: Sequence[int] = (),
) -> Read:
    """Return the states of the response tokens; predictions are read of the first adapter only."""
    rows = rows_for(
        model, [e.prompt_ids for e in batch], [e.response_ids for e in batch], pad_token_id
    )
    ids = rows["input_ids"]
    read = rows["response_mask"] & ~torch.isin(ids, torch.tensor(special, device=ids.device).long())
    places = read.flatten().nonzero().squeeze(1)
    rows["response_mask"] = with_context(rows)
    hidden, logits = {}, {}
    for name in (None, *adapters):
        whole = name in (None, adapters[0])
        with frozen_pass(model, name), recorded(model, dictionary, places, stop=not whole) as found:
            if whole:
                logits[name] = predictions(model, rows)
            else:
                model(**model_inputs(rows), use_cache=False, logits_to_keep=1)
        hidden[name] = found[0]
    owners = (places // ids.shape[1]).tolist()
    check_finite_states(
        torch.stack([*hidden.values()]),
        [dictionary.origin.layer] * len(hidden),
        [f"of prompt {batch[owner].prompt}" for owner in owners],
    )
    kl = kl_divergence(logits[None], logits[adapters[0]], rows["response_mask"], rows)
    base = hidden.pop(None)
    return Read(base, hidden, read.sum(1).tolist(), kl.double().clamp(min=0).tolist())


@contextmanager
def recorded(
    model: nn.Module, dictionary: Dictionary, places: Tensor, *, stop: bool
) -> Iterator[list[Tensor]]:
    """Yield a list that the forward inside fills with the states at the dictionary's site.

    Args:
        places: indices into the flattened [batch * seq] tokens.
        stop: skip every block above; the forward's logits are then meaningless.
    """
    found: list[Tensor] = []
    layer = dictionary.origin.layer
    if dictionary.origin.site == "residual":
        with record(model, (layer,), places, stop=stop) as recording:
            yield found
        found.append(recording.stack()[0])
        return

    def keep(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        found.append(states.flatten(0, 1).index_select(0, places).float())

    hook = module_at(model, dictionary).register_forward_hook(keep)
    try:
        with record(model, (layer,), places[:1], stop=stop):
            yield found
    finally:
        hook.remove()


def encoded(
    dictionary: Dictionary, read: Read
) -> tuple[dict[str | None, SparseCodes], Float[Tensor, "tokens d_model"]]:
    """Return codes of the base (None) and of each adapter, and what they say the difference is.

    A dictionary of differences has codes of the differences, and none of the base.
    """
    if dictionary.origin.kind == "states":
        codes = {None: dictionary.encode(read.base)}
        codes |= {name: dictionary.encode(hidden) for name, hidden in read.aligned.items()}
        first = dictionary.decode(codes[next(iter(read.aligned))])
        return codes, first - dictionary.decode(codes[None])
    codes = {name: dictionary.encode(hidden - read.base) for name, hidden in read.aligned.items()}
    first = codes[next(iter(read.aligned))]
    nothing = SparseCodes(
        torch.zeros_like(first.offsets), first.indices[:0], first.values[:0], first.latents
    )
    return {None: nothing, **codes}, dictionary.decode(first)


def _fit(
    fits: Mapping[str, Explained],
    dictionary: Dictionary,
    read: Read,
    codes: Mapping[str | None, SparseCodes],
    guess: Tensor,
    measured: bool,
) -> None:
    """Add how well the dictionary fits both models, and the difference on measured rows."""
    name, aligned = next(iter(read.aligned.items()))
    if dictionary.origin.kind == "states":
        fits["base"].add(read.base, dictionary.decode(codes[None]))
        fits["aligned"].add(aligned, dictionary.decode(codes[name]))
    if measured:
        fits["difference"].add(aligned - read.base, guess)


def _said(
    batch: Sequence[HeldOut], read: Read, codes: Mapping[str | None, SparseCodes]
) -> Iterator[Said]:
    first = 0
    for each, length, divergence in zip(batch, read.lengths, read.divergences, strict=True):
        last = first + length
        parts = {name: code.part(first, last) for name, code in codes.items()}
        yield Said(each.prompt, parts.pop(None), parts, divergence)
        first = last
