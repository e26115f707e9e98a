"""Base and aligned models on held-out responses: one model in memory, its adapters switched.

What the dictionary shows of the change and what the rivals show of it come from the same rows, in
one pass. Knows models, ids and dictionaries; knows no text and no file.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from peft import PeftModel
from torch import Tensor
from tqdm.auto import tqdm

from rahf.evaluation.intervals import Estimate, ratio_estimate
from rahf.interpret.features.bases import check_base
from rahf.interpret.features.dictionary import Dictionary, SparseCodes
from rahf.interpret.features.explained import Explained
from rahf.interpret.features.movement import (
    Moved,
    Movement,
    Said,
    band_figures,
    feature_figures,
    moved_count,
    ranked,
    size_quantiles,
)
from rahf.interpret.features.responses import HeldOut, Read, read_batch
from rahf.interpret.features.rivals import Reproduced, Rivals, Seen, seen

WORSE = 0.02
"""Share of the variance by which a dictionary fits the aligned model worse before a warning."""


class Found(NamedTuple):
    """What changed on the held-out responses."""

    moved: Moved
    rivals: Rivals
    fit: dict[str, float | None]  # variance explained of base and aligned states; None: differences
    reproduced: Reproduced  # effects that the rivals' guesses make
    explained: Explained  # of the differences, on the rows that the rivals are measured on
    divergence: Estimate  # mean KL of predictions, nats per token

    def seen(self, latent: int, direction: Float[Tensor, " d_model"]) -> Seen:
        """Return what the rivals show of a latent with this decoder direction."""
        correlated = self.moved.divergence[latent].item(), self.moved.divergence_p[latent].item()
        return seen(self.rivals.fitted(), self.reproduced, latent, direction, *correlated)

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
    gathered = _Gathered(dictionary, names, placebos)
    for measured, batch in tqdm([*batches(held_out, batch_size)], "reading", leave=False):
        read = read_batch(model, dictionary, names, batch, pad_token_id, special)
        gathered.add(batch, read, measured)
    return gathered.found()


class _Gathered:
    """What has been read so far, for all that is reported."""

    def __init__(self, dictionary: Dictionary, names: Sequence[str], placebos: Sequence[str]):
        self._dictionary, self._first = dictionary, names[0]
        self._movement = Movement(dictionary.latents, names, placebos)
        self._rivals = Rivals(dictionary.d_model)
        self._reproduced = Reproduced(dictionary.latents)
        self._fits = {name: Explained() for name in ("base", "aligned", "difference")}
        self._divergence: dict[int, Tensor] = {}  # of each prompt: sum over tokens, tokens

    def add(self, batch: Sequence[HeldOut], read: Read, measured: bool) -> None:
        """Add a batch; `measured`: of the half that rivals are measured on."""
        codes, guess = encoded(self._dictionary, read)
        aligned = read.aligned[self._first]
        (self._rivals.measure if measured else self._rivals.fit_to)(read.base, aligned)
        if self._dictionary.origin.kind == "states":
            decode = self._dictionary.decode
            self._fits["base"].add(read.base, decode(codes[None]))
            self._fits["aligned"].add(aligned, decode(codes[self._first]))
        if measured:
            self._fits["difference"].add(aligned - read.base, guess)
            self._reproduce(read.base, aligned, codes)
        for said, tokens in zip(_said(batch, read, codes), read.predicted, strict=True):
            self._movement.add(said)
            found = torch.tensor([said.divergence * tokens, tokens], dtype=torch.double)
            self._divergence[said.prompt] = self._divergence.get(said.prompt, 0) + found

    def _reproduce(
        self, base: Tensor, aligned: Tensor, codes: Mapping[str | None, SparseCodes]
    ) -> None:
        """Encode what the rivals leave of the difference, in the place of the aligned model."""
        states = self._dictionary.origin.kind == "states"
        guesses = self._rivals.fitted().guesses((aligned - base).double().cpu())
        names = ("mean", list(guesses)[-1])
        guessed = {
            name: self._dictionary.encode(guesses[name].to(base) + (base if states else 0))
            for name in names
        }
        sums = {name: _summed(part) for name, part in guessed.items()}
        self._reproduced.add(_summed(codes[None]), _summed(codes[self._first]), sums)

    def found(self) -> Found:
        states = self._dictionary.origin.kind == "states"
        fit = {
            name: self._fits[name].variance() if states else None for name in ("base", "aligned")
        }
        sums, tokens = torch.stack([*self._divergence.values()]).T.tolist()
        return Found(
            self._movement.moved(),
            self._rivals,
            fit,
            self._reproduced,
            self._fits["difference"],
            ratio_estimate(sums, tokens, least=0.0),
        )


def _summed(codes: SparseCodes) -> Float64[Tensor, " latents"]:
    """Return the sum of each latent's activations."""
    sums = torch.zeros(codes.latents, dtype=torch.double)
    return sums.index_add_(0, codes.indices.long().cpu(), codes.values.double().cpu())


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

    Responses to one prompt follow one another and are in one half.
    """
    prompts = list(dict.fromkeys(each.prompt for each in held_out))
    for measured in (False, True):
        half = set(prompts[int(measured) :: 2])
        inside = sorted((e for e in held_out if e.prompt in half), key=lambda e: e.prompt)
        for start in range(0, len(inside), batch_size):
            yield measured, inside[start : start + batch_size]


def encoded(
    dictionary: Dictionary, read: Read
) -> tuple[dict[str | None, SparseCodes], Float[Tensor, "tokens d_model"]]:
    """Return codes of the base (None) and of each adapter, and the difference that they give.

    A dictionary of differences has codes of the differences; those of the base are the codes of no
    difference, which are not empty where the dictionary has biases.
    """
    if dictionary.origin.kind == "states":
        codes = {None: dictionary.encode(read.base)}
        codes |= {name: dictionary.encode(hidden) for name, hidden in read.aligned.items()}
        first = dictionary.decode(codes[next(iter(read.aligned))])
        return codes, first - dictionary.decode(codes[None])
    codes = {name: dictionary.encode(hidden - read.base) for name, hidden in read.aligned.items()}
    first = codes[next(iter(read.aligned))]
    nothing = dictionary.encode(torch.zeros_like(read.base))
    return {None: nothing, **codes}, dictionary.decode(first)


def _said(
    batch: Sequence[HeldOut], read: Read, codes: Mapping[str | None, SparseCodes]
) -> Iterator[Said]:
    first = 0
    for each, length, divergence in zip(batch, read.lengths, read.divergences, strict=True):
        last = first + length
        parts = {name: code.part(first, last) for name, code in codes.items()}
        yield Said(each.prompt, parts.pop(None), parts, divergence)
        first = last


def movement_figures(
    found: Found,
    directions: Float[Tensor, "latents d_model"],
    adapters: Sequence[str],
    placebos: Sequence[str],
    top: int,
) -> dict[str, Any]:
    """Return everything that `rahf features diff` reports.

    Args:
        directions: of the dictionary.
        adapters: the reported one first, then the seeds beside it.
        placebos: adapters trained on shuffled pairs.
        top: features that are listed.
    """
    moved, rows, names = found.moved, [], (*adapters, *placebos)
    for latent in ranked(moved)[:top].tolist():
        shown = found.seen(latent, directions[latent])
        row = feature_figures(moved, latent, adapters, placebos)
        rows.append(row | {"rivals": shown._asdict(), "seen_by": shown.by()})
    return {
        "prompts": moved.prompts,
        "tokens": moved.tokens,
        "features_tested": int(moved.tested.sum()),
        "moved": {name: moved_count(moved.changes[name]) for name in names},
        "size_quantiles": {name: size_quantiles(moved, moved.changes[name]) for name in names},
        **band_figures(moved, adapters[0], placebos),
        "fit": found.fit,
        "fits_aligned_worse": found.fits_worse(),
        "explained": {
            "dictionary": found.explained.shares(),
            **{_rival(name): part.shares() for name, part in found.rivals.explained.items()},
        },
        "separability": found.rivals.separability(),
        "token_kl": found.divergence.as_dict(),
        "unseen_by_rivals": sum(not row["seen_by"] for row in rows[:10] if row["moved"]),
        "features": rows,
    }


def _rival(name: str) -> str:
    return "mean difference" if name == "mean" else f"mean and {name} principal components"
