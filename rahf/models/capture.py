"""Decoder blocks of a model: find them, start or stop after one, record their outputs. The only
place that knows the layer index.

Layer `l` is decoder block `l`, counted from 0; its hidden state is the residual stream after it,
before any final norm. Knows models, not losses. Recording taps wrap a block, outside of its
activation checkpointing, so that nothing is recorded twice when the block is recomputed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


class Blocks(NamedTuple):
    """Where a decoder keeps its blocks."""

    owner: nn.Module
    name: str
    modules: nn.ModuleList


def without_adapters(model: nn.Module) -> nn.Module:
    """Return the model inside of PEFT's wrapper, or the model itself where it has none."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def text_config(model: nn.Module) -> PreTrainedConfig:
    """Return the configuration of a model's language part."""
    return cast(PreTrainedConfig, model.config).get_text_config()


def find_blocks(model: nn.Module) -> Blocks:
    """Return the list of decoder blocks of a causal language model, with or without adapters.

    Raises:
        ValueError: neither the decoder nor a model inside it has a list of `num_hidden_layers`
            blocks as a direct child.
    """
    base = without_adapters(model)
    if not hasattr(base, "get_decoder"):
        raise ValueError(
            f"{type(base).__name__} is no model of transformers: give a causal language model, "
            "with or without adapters."
        )
    decoder = base.get_decoder()
    configured = base if isinstance(decoder, nn.Linear) else decoder
    depth = configured.config.get_text_config().num_hidden_layers
    if found := _lists(decoder, depth):
        return found[0]
    # Some models return another module than their decoder (ModernBERT: the head).
    inside = [part for part in base.modules() if isinstance(part, PreTrainedModel)]
    if len(found := [blocks for part in inside for blocks in _lists(part, depth)]) == 1:
        return found[0]
    raise ValueError(
        f"{type(decoder).__name__} has no list of its {depth} decoder blocks as a direct child, so "
        "their hidden states cannot be read. Its children are "
        f"{[name for name, _ in decoder.named_children()]}."
    )


def _lists(owner: nn.Module, depth: int) -> list[Blocks]:
    return [
        Blocks(owner, name, child)
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]


class AroundBlock(nn.Module):
    """Replaces the block inside in a decoder's loop."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def __getattr__(self, name: str):
        # Decoder loops read attributes of a block (its attention type), which are those of the
        # block inside.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


class Tap(AroundBlock):
    """Copies the requested positions of the block's output to `recorded`."""

    def __init__(
        self, block: nn.Module, layer: int, positions: Tensor, recorded: dict[int, Tensor]
    ):
        super().__init__(block)
        self.layer = layer
        self.positions = positions
        self.recorded = recorded

    def forward(self, *args, **kwargs):
        output = self.block(*args, **kwargs)
        hidden = output if isinstance(output, Tensor) else output[0]
        self.recorded[self.layer] = hidden.flatten(0, 1).index_select(0, self.positions).float()
        return output


class Narrowed(AroundBlock):
    """Runs the block on the first tokens of a pack; the states of the others become zeros.

    The sequence keeps its length: a decoder may reshape what comes out of its last block to the
    shape of its input (GPT-2).
    """

    def __init__(self, block: nn.Module, tokens: int):
        super().__init__(block)
        self.tokens = tokens

    def forward(self, hidden: Tensor, *args, **kwargs):
        first = {name: self._first(value) for name, value in kwargs.items()}
        output = self.block(self._first(hidden), *map(self._first, args), **first)
        if isinstance(output, Tensor):
            return self._whole(output, hidden)
        return (self._whole(output[0], hidden), *output[1:])

    def _whole(self, states: Tensor, hidden: Tensor) -> Tensor:
        return nn.functional.pad(states, (0, 0, 0, hidden.shape[1] - states.shape[1]))

    def _first(self, value: Any) -> Any:
        """Cut tensors with one entry per token (states, positions) in a batch of one line."""
        if isinstance(value, tuple):
            return tuple(map(self._first, value))
        by_token = isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] > self.tokens
        return value[:, : self.tokens] if by_token else value


@dataclass
class Trunk:
    """The blocks below the lowest adapter, and their output on a block of rows.

    Base, teachers and policy share it: the first pass computes it, later ones start above it.
    """

    depth: int  # blocks; 0: every pass runs all of them
    output: Any = None  # of the highest of them, as that block returns it; without gradient

    def around(self, blocks: Sequence[nn.Module]) -> list[nn.Module]:
        """Return what runs in place of `blocks`, the trunk's own."""
        if not blocks or self.output is not None:
            return [Known(block, self) for block in blocks]
        return [*blocks[:-1], Kept(blocks[-1], self)]


class Kept(AroundBlock):
    """Keeps the output of the trunk's highest block."""

    def __init__(self, block: nn.Module, trunk: Trunk):
        super().__init__(block)
        self.trunk = trunk

    def forward(self, *args, **kwargs):
        output = self.block(*args, **kwargs)
        if isinstance(output, Tensor):
            self.trunk.output = output.detach()
        else:
            self.trunk.output = (output[0].detach(), *output[1:])
        return output


class Known(AroundBlock):
    """Returns the trunk's output on the tokens of its input, and runs no block."""

    def __init__(self, block: nn.Module, trunk: Trunk):
        super().__init__(block)
        self.trunk = trunk

    def forward(self, hidden: Tensor, *args, **kwargs):
        output = self.trunk.output
        if isinstance(output, Tensor):
            return self._on(hidden, output)
        return (self._on(hidden, output[0]), *output[1:])

    def _on(self, hidden: Tensor, states: Tensor) -> Tensor:
        """Return the states of the first rows, where a later pass reads fewer."""
        states = states[: hidden.shape[0], : hidden.shape[1]]
        # Activation checkpointing in its reentrant form needs an input with a gradient.
        checkpointed = getattr(self.block, "gradient_checkpointing", False)
        return states.requires_grad_() if checkpointed and torch.is_grad_enabled() else states


class Recording:
    """Hidden states of the recorded layers, filled by the forward made inside `record`."""

    def __init__(self, layers: Sequence[int]):
        self._layers = tuple(layers)
        self._by_layer: dict[int, Tensor] = {}

    def stack(self) -> Float[Tensor, "layers tokens d_model"]:
        """Return the recorded states in float32, in the order of the layers given."""
        return torch.stack([self._by_layer[layer] for layer in self._layers])


@contextmanager
def record(
    model: nn.Module,
    layers: Sequence[int],
    positions: Int[Tensor, " tokens"],
    *,
    stop: bool,
    tokens_above: int | None = None,
    trunk: Trunk | None = None,
) -> Iterator[Recording]:
    """Record blocks `layers` at `positions` during the forward made inside the context.

    Args:
        model: the unwrapped model; the forward may go through a wrapper of it.
        positions: indices into the flattened [batch * seq] tokens.
        stop: skip every block above the last recorded one. The forward's logits are then
            meaningless.
        tokens_above: how many of the first tokens of a pack the blocks above the last recorded one
            read; the other tokens get no logits. None: all.
        trunk: blocks below the recorded ones that are run once for several passes on the same rows.
    """
    blocks = find_blocks(model)
    recording, lower = Recording(layers), max(layers) + 1
    around: list[nn.Module] = [
        Tap(block, layer, positions, recording._by_layer) if layer in layers else block
        for layer, block in enumerate(blocks.modules[:lower])
    ]
    if trunk is not None:
        around[: trunk.depth] = trunk.around([*blocks.modules][: trunk.depth])
    if not stop:
        above = blocks.modules[lower:]
        around += above if tokens_above is None else [Narrowed(x, tokens_above) for x in above]
    with replaced_blocks(blocks, around):
        yield recording


@contextmanager
def replaced_blocks(blocks: Blocks, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let the decoder loop run over `modules` in place of its own blocks."""
    # ModuleList keeps the very same block objects: parameters, hooks and sharding stay where they
    # are.
    setattr(blocks.owner, blocks.name, nn.ModuleList(modules))
    try:
        yield
    finally:
        setattr(blocks.owner, blocks.name, blocks.modules)
