"""Steering with no training: stored directions added to, or taken out of, the residual stream while
a model runs.

Knows models and directions; knows no data. Outside of the context the model is as it was, to the
bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache

from rahf.directions.vectors import Directions
from rahf.generation.reading import reading_of
from rahf.generation.unfinished import PrefixCache
from rahf.models.capture import find_blocks, text_config
from rahf.models.kv_cache import cache_name, given_cache, only_recurrent

Mode = Literal["add", "ablate"]
Start = int | Sequence[int] | Literal["generated"] | None
Strength = float | Sequence[float] | Sequence[Sequence[float]] | Tensor


@dataclass
class Columns:
    """Which columns of the running forward are steered; kept up to date by the decoder's hook."""

    start: Start  # first steered column of the full text
    past: int = 0  # columns that are in the key-value cache already
    generates: bool = True  # whether a token is chosen after the running forward
    read: "WeakKeyDictionary[Cache, int]" = field(default_factory=WeakKeyDictionary)
    # columns of caches that hold one state for all of them, and do not count them

    def note(self, decoder: nn.Module, args: tuple, given: Mapping[str, Any]) -> None:
        if self.start is None:  # every column, whatever is in the cache
            return
        cache = given_cache(decoder, args, given)
        if self.start == "generated" and given.get("use_cache") is False:
            raise ValueError(
                "start='generated' needs the key-value cache, which is off: what was generated "
                "before looks like the prompt. Leave use_cache on, or give the column."
            )
        self.past = 0 if cache is None else self._length(cache)
        self.generates = not isinstance(cache, PrefixCache)

    def _length(self, cache: Cache) -> int:
        """Return the columns that stand in a cache.

        Raises:
            ValueError: a recurrent state that was computed outside of the context.
        """
        if not cache.layers or not only_recurrent(cache):
            return int(cache.get_seq_length())
        if cache not in self.read and cache.has_previous_state():
            raise ValueError(
                "the cache holds a recurrent state from before steering began, which does not say "
                "how many tokens it has read: read the prompt inside of the steer context, or "
                "steer with start=None."
            )
        return self.read.get(cache, 0)

    def count(self, decoder: nn.Module, args: tuple, given: Mapping[str, Any], output: Any) -> None:
        """Count the columns of a recurrent state after a forward."""
        if self.start is None or not isinstance(output, Mapping):
            return
        cache = output.get(cache_name(decoder))
        if isinstance(cache, Cache) and only_recurrent(cache):
            self.read[cache] = self.past + output["last_hidden_state"].shape[1]

    def mask(self, hidden: Tensor) -> Tensor | None:
        """Return [rows or 1, seq, 1] of 0 and 1; None where every column is steered."""
        if self.start is None:
            return None
        columns = torch.arange(hidden.shape[1], device=hidden.device) + self.past
        if self.start == "generated":
            return ((columns == columns[-1]) & self.generates).to(hidden.dtype).view(1, -1, 1)
        start = per_row(torch.as_tensor(self.start, device=hidden.device), hidden.shape[0])
        return (columns >= start.view(-1, 1)).to(hidden.dtype).unsqueeze(-1)


@dataclass(frozen=True)
class Addition:
    """alpha times the vectors, added up."""

    shift: Float[Tensor, "rows d_model"]

    def largest(self) -> float:
        """Return the largest norm that is added."""
        return self.shift.double().norm(dim=-1).max().item()

    def __call__(self, hidden: Float[Tensor, "batch seq d_model"]) -> Tensor:
        return per_row(self.shift.to(hidden), len(hidden)).unsqueeze(1)


@dataclass(frozen=True)
class Ablation:
    """Minus alpha times the part of a state in the space of the basis."""

    basis: Float[Tensor, "basis d_model"]  # orthonormal
    alpha: Float[Tensor, "rows 1"]

    def largest(self) -> float:
        """Return the largest norm that is added to a state of norm 1."""
        return self.alpha.double().abs().max().item()

    def __call__(self, hidden: Float[Tensor, "batch seq d_model"]) -> Tensor:
        basis = self.basis.to(hidden)
        alpha = per_row(self.alpha.to(hidden), len(hidden)).unsqueeze(1)
        return -alpha * ((hidden @ basis.T) @ basis)


def steered(change: Callable[[Tensor], Tensor], columns: Columns) -> Callable[..., Any]:
    """Return a forward hook that adds `change` of the output of its block to that output."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = output if isinstance(output, Tensor) else output[0]
        mask, added = columns.mask(hidden), change(hidden)
        hidden = hidden + (added if mask is None else mask * added)
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    return hook


@contextmanager
def steer(
    model: nn.Module,
    directions: Directions | Sequence[Directions],
    alpha: Strength = 1.0,
    *,
    mode: Mode = "add",
    start: Start = None,
) -> Iterator[None]:
    """Steer every forward of `model` made inside the context, `generate` included.

    Args:
        directions: one, several at once, or none; each acts on the layers that it has.
        alpha: see `strengths_of`. Rows that generation repeats keep their strength.
        mode: `add` alpha times the vector, or `ablate` the part of the state along the vectors.
        start: first column that is steered, for all rows or for each; None: every column.
            `generated`: what is generated with a key-value cache, from the last prompt token on.

    Raises:
        ValueError: directions, strengths or a start that do not fit the model or the batch.
    """
    given = [directions] if isinstance(directions, Directions) else list(directions)
    if not given:
        yield
        return
    strengths, blocks = strengths_of(alpha, len(given), mode), find_blocks(model)
    for each in given:
        each.check_model(text_config(model).hidden_size, len(blocks.modules))
    if not strengths.any():
        yield
        return
    if start is not None:
        _check_generation(model, blocks.owner)
    columns, dtype = Columns(start), cast(torch.dtype, model.dtype)
    with ExitStack() as hooks:
        hooks.enter_context(_kept_up_to_date(columns, blocks.owner))
        for layer, change in changes(given, strengths, mode).items():
            check_size(change.largest(), dtype, f"alpha: what is added in layer {layer}")
            hook = blocks.modules[layer].register_forward_hook(steered(change, columns))
            hooks.enter_context(removed_afterwards(hook))
        yield


def check_size(norm: float, dtype: torch.dtype, what: str) -> None:
    """Refuse what no state of this dtype can hold, or whose square a norm layer cannot.

    Raises:
        ValueError: the norm of what is added is too large, or not finite.
    """
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max ** 0.5)
    if not norm <= largest:
        raise ValueError(
            f"{what} has the norm {norm:.3g}, more than the {largest:.3g} that a model in "
            f"{str(dtype).removeprefix('torch.')} can read: give a smaller strength."
        )


@contextmanager
def _kept_up_to_date(columns: Columns, decoder: nn.Module) -> Iterator[None]:
    """Let `columns` see every forward of the decoder, before and after it."""
    note = decoder.register_forward_pre_hook(columns.note, with_kwargs=True)
    count = decoder.register_forward_hook(columns.count, with_kwargs=True)
    with removed_afterwards(note), removed_afterwards(count):
        yield


def _check_generation(model: nn.Module, owner: nn.Module) -> None:
    """Check before the first token, and unsteered, that the cache can be read and how rows are."""
    cache_name(owner)
    reading_of(model)


def changes(
    directions: Sequence[Directions], strengths: Float[Tensor, "rows directions"], mode: Mode
) -> dict[int, Addition | Ablation]:
    """Return what is done to the output of each layer that one of the directions has."""
    found: dict[int, Addition | Ablation] = {}
    for layer in sorted({layer for each in directions for layer in each.layers}):
        acting = [index for index, each in enumerate(directions) if layer in each.layers]
        vectors = torch.cat([directions[index].select((layer,)) for index in acting])
        if mode == "add":
            found[layer] = Addition(strengths[:, acting] @ vectors)
        else:
            found[layer] = Ablation(spanned(vectors), strengths[:, :1])
    return found


@contextmanager
def removed_afterwards(hook: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


def strengths_of(alpha: Strength, directions: int, mode: Mode) -> Float[Tensor, "rows directions"]:
    """Return strengths as [rows or 1, directions].

    Args:
        alpha: a number; for several directions a number for each; for one direction a number for
            each row of the batch; or [rows, directions]. Directions that are ablated together
            have one strength.

    Raises:
        ValueError: strengths in another form.
    """
    whole = given = torch.as_tensor(alpha, dtype=torch.float32).cpu()
    if not given.isfinite().all():
        raise ValueError(f"alpha: {alpha} is not finite: give numbers.")
    if given.ndim == 0:
        whole = given.expand(1, directions)
    elif given.ndim == 1:
        whole = given[:, None] if directions == 1 else given[None]
    if whole.ndim != 2 or whole.shape[1] != directions or not len(whole):
        raise ValueError(
            f"alpha has the shape {tuple(given.shape)}, which fits {directions} directions in no "
            "way: give one number, a number per direction, or [rows, directions]."
        )
    if mode == "ablate" and (whole != whole[:, :1]).any():
        raise ValueError(
            "directions that are ablated together need one strength: what is taken out is the "
            "space that they span. Nest two steer contexts for two strengths."
        )
    return whole


def spanned(
    vectors: Float[Tensor, "directions d_model"],
) -> Float[Tensor, "basis d_model"]:
    """Return an orthonormal basis of what the vectors span; of a zero vector, nothing."""
    _, sizes, axes = torch.linalg.svd(vectors.double(), full_matrices=False)
    return axes[sizes > 1e-6 * sizes[0].clamp(min=torch.finfo(sizes.dtype).tiny)].float()


def per_row(values: Tensor, rows: int) -> Tensor:
    """Return the values of the given rows, or the same for all, as generation repeats them.

    Raises:
        ValueError: the batch is no multiple of the rows that were given.
    """
    if values.ndim == 0 or len(values) in (1, rows):
        return values
    if rows % len(values):
        raise ValueError(
            f"strengths or starts were given for {len(values)} rows, but the batch has {rows}."
        )
    return values.repeat_interleave(rows // len(values), 0)
