"""Prevention: add an unwanted direction to the residual stream while a model is trained, so that
the weights need not move along it (arXiv 2507.21509, section 5).

    h_l <- h_l + alpha * v_l    in training forward passes, at the positions that predict a response

Nothing is added in evaluation, in generation or in the passes of a reference model, and nothing is
left afterwards. Knows models and directions; knows no trainer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import Trainer

from rahf.directions.vectors import Directions
from rahf.guards.automatic_alpha import AUTO, START, AlphaFromMargin
from rahf.guards.checks import check_count, check_directions, increments, is_number
from rahf.models.capture import find_blocks, text_config, without_adapters

Positions = Literal["response", "all"]

LARGEST = 1e4
"""Largest alpha: a state that is shifted further leaves the range of float16 and of sense."""


@dataclass
class Prevention:
    """What is added in the running forward pass; `alpha` may be changed between two of them."""

    alpha: float  # in units of the directions: 1 adds the mean difference itself
    positions: Positions
    running: bool = False  # whether the model's forward pass is running
    adds: bool = False  # whether it computes gradients for a training
    mask: Bool[Tensor, "batch seq"] | None = None  # None: every position

    def use(self, alpha: float) -> None:
        """Take another alpha from the next forward pass on."""
        self.alpha = alpha

    def begin(self, model: nn.Module, _args: tuple, given: Mapping[str, Any]) -> None:
        """Decide what the forward pass adds, before it runs."""
        _check(self.alpha, self.positions)
        self.running, self.mask = True, None
        self.adds = model.training and torch.is_grad_enabled()
        if self.adds and self.positions == "response":
            self.mask = predicting(given.get("labels"))

    def end(self, *_: Any) -> None:
        self.running, self.mask = False, None

    def addition(self, shift: Float[Tensor, " d_model"]) -> Callable[..., Any]:
        """Return a forward hook of a block that adds `alpha * shift` to its output."""

        def hook(block: nn.Module, _args: tuple, output: Any) -> Any:
            hidden = output if isinstance(output, Tensor) else output[0]
            if not self.running:
                return self._outside(block, output)
            if not self.adds or self.alpha == 0:
                return output
            added = self.alpha * shift.to(hidden)
            if self.mask is not None:
                added = added * self._mask_of(hidden)
            hidden = hidden + added
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        return hook

    def _mask_of(self, hidden: Tensor) -> Float[Tensor, "batch seq 1"]:
        mask = self.mask
        assert mask is not None
        if mask.shape != hidden.shape[:2]:
            raise ValueError(
                f"labels of shape {tuple(mask.shape)} do not fit hidden states of shape "
                f"{tuple(hidden.shape[:2])}: give positions='all'."
            )
        return mask.to(hidden).unsqueeze(-1)

    def _outside(self, block: nn.Module, output: Any) -> Any:
        """Refuse a training pass that is not part of the model's own forward pass."""
        if block.training and torch.is_grad_enabled():
            raise ValueError(
                "a decoder block computes gradients outside of the model's forward pass, so it is "
                "unknown what to add: give `prevent` the model that the trainer calls, and turn "
                "off an activation checkpointing that recomputes hooks."
            )
        return output


def predicting(labels: Tensor | None) -> Bool[Tensor, "batch seq"]:
    """Return the positions whose next token is scored: the last of the prompt to the last but one
    of the response.

    Raises:
        ValueError: there are no labels.
    """
    if labels is None:
        raise ValueError(
            "positions='response' reads the `labels` that the trainer gives the model, but there "
            "are none: give positions='all'."
        )
    if labels.ndim != 2:
        raise ValueError(f"labels of shape {tuple(labels.shape)} are not [batch, seq].")
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != -100
    return mask


@contextmanager
def prevent(
    model: nn.Module,
    directions: Directions,
    alpha: float | Literal["auto"] = 1.0,
    *,
    positions: Positions = "response",
    trainer: Trainer | None = None,
    pairs: str | Path | Sequence[Mapping[str, Any]] | None = None,
    every: int = 5,
) -> Iterator[Prevention]:
    """Add `alpha` times the directions in training forward passes (training mode, with gradients).

    Of several layers the increments are added, so that each state shifts by its own vector.

    Args:
        model: a causal language model; wrappers of it may be called.
        directions: the unwanted trait minus its opposite, in units of the residual stream.
        alpha: 1 to 2 is usual. `auto`: chosen while `trainer` trains, so that the margin of `pairs`
            returns to its value before (`automatic_alpha`).
        positions: those that predict a response, known by the `labels`, or `all`.
        pairs: held-out pairs, the trait's side as `chosen`: a file, or records.
        every: optimizer steps between two readings of the margin.

    Raises:
        ValueError: directions, alpha, positions or labels that do not fit.
    """
    automatic = alpha == AUTO
    state = Prevention(cast(float, START if automatic else alpha), positions)
    _check(state.alpha, positions, every)
    check_directions(directions)
    depth = len(find_blocks(model).modules)
    directions.check_model(text_config(model).hidden_size, depth)
    shifts = increments(directions)
    if not automatic and (trainer is not None or pairs is not None):
        raise ValueError("trainer= and pairs= are read with alpha='auto' only: omit them.")
    with ExitStack() as contexts:
        if automatic:
            contexts.enter_context(_chosen_by_margin(state, trainer, shifts, pairs, every))
        contexts.enter_context(_added(model, state, shifts))
        yield state


@contextmanager
def _added(model: nn.Module, state: Prevention, shifts: Directions) -> Iterator[None]:
    """Register the hooks, and remove them afterwards."""
    blocks, base = find_blocks(model).modules, without_adapters(model)
    with ExitStack() as hooks:
        hooks.callback(base.register_forward_pre_hook(state.begin, with_kwargs=True).remove)
        hooks.callback(base.register_forward_hook(state.end, always_call=True).remove)
        for layer, shift in zip(shifts.layers, shifts.vectors, strict=True):
            hook = blocks[layer].register_forward_hook(state.addition(shift))
            hooks.callback(hook.remove)
        yield


@contextmanager
def _chosen_by_margin(
    state: Prevention, trainer: Trainer | None, shifts: Directions, pairs: Any, every: int
) -> Iterator[None]:
    """Let a callback of the trainer choose alpha, and take the callback away afterwards."""
    everywhere = state.positions == "all"
    callback = AlphaFromMargin(
        trainer, shifts, pairs, everywhere=everywhere, every=every, change=state.use
    )
    assert trainer is not None  # which the callback refuses
    trainer.add_callback(callback)
    try:
        yield
    finally:
        trainer.remove_callback(callback)


def _check(alpha: float, positions: str, every: int = 1) -> None:
    check_count("every", every)
    if not is_number(alpha) or abs(alpha) > LARGEST:
        raise ValueError(
            f"alpha: {alpha!r} is not a number of at most {LARGEST:g} in size, nor 'auto': 1 to 2 "
            "is usual."
        )
    if positions not in ("response", "all"):
        raise ValueError(f"positions: {positions!r} should be 'response' or 'all'.")
