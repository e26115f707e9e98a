"""Floating point operations of a pass through a decoder, from its shapes.

A product of an `a x b` with a `b x c` matrix counts 2abc. Only matrix products are counted: norms,
activations, softmax and the loss are less than a hundredth of them in real models. Padding is
counted, since it is computed. Attention counts the full square of a row's width, which kernels
that skip the upper triangle halve. Knows no recipe, no memory and no dtype.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rahf.models.shapes import Decoder, Linear, Lora


class Upper(NamedTuple):
    """The blocks on top of a pass that fewer rows reach."""

    blocks: int
    rows: int
    width: float


class Pass(NamedTuple):
    """One batch of rows through the lower blocks of a decoder, in one process."""

    name: str
    rows: int
    width: float  # tokens of a row, padding included
    depth: int  # blocks that are computed
    adapted: bool  # an adapter is on, not only the base
    trained: bool  # forward and backward; False: a frozen forward
    columns: float = 1  # tokens of a row that the head is applied to
    scored: float = 0  # tokens of a row whose logits reach a loss; 0: the head gets no gradient
    recorded: float = 0  # hidden states of a row that are kept, over all target layers
    counted: bool = True  # False: no part of a step (the measurement on held-out pairs)
    share: float = 1  # of the steps that it is made in
    upper: Upper | None = None  # None: all rows reach all of the blocks
    below: int = 0  # lowest of the computed blocks, that have no adapter and get no gradient

    @property
    def tokens(self) -> float:
        return self.rows * self.width

    def levels(self) -> tuple["Pass", ...]:
        """Return a pass of all rows through the lower blocks, and one of the rows that continue."""
        if self.upper is None:
            return (self,)
        blocks, rows, width = self.upper
        lower = self._replace(depth=self.depth - blocks, upper=None)
        return lower, lower._replace(depth=blocks, rows=rows, width=width, below=0)


def from_trunk(
    passes: Sequence[Pass], blocks: int, on_same_rows: Sequence[bool]
) -> tuple[Pass, ...]:
    """Return the passes of a batch as they run: of those on the same rows only the first computes
    the lowest `blocks`, which have no adapter.
    """
    first = on_same_rows.index(True) if True in on_same_rows else len(passes)
    return tuple(
        each._replace(depth=each.depth - blocks)
        if shares and index > first
        else each._replace(below=blocks)
        for index, (each, shares) in enumerate(zip(passes, on_same_rows, strict=True))
    )


class Work(NamedTuple):
    """FLOPs of one pass."""

    forward: float
    backward: float
    recomputed: float  # forward work done again in the backward, under activation checkpointing

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recomputed


def pass_work(decoder: Decoder, lora: Lora, made: Pass, checkpointing: bool) -> Work:
    """Return FLOPs of a pass; a frozen one has its forward only."""
    levels, adapter = made.levels(), lora if made.adapted else None
    head = 2 * decoder.d_model * decoder.vocab * levels[-1].rows * made.columns
    forward = head + sum(
        (level.depth - level.below) * block_forward(decoder, adapter, level)
        + level.below * block_forward(decoder, None, level)
        for level in levels
    )
    if not made.trained:
        return Work(forward, 0, 0)
    backward = sum(
        (level.depth - level.below) * block_backward(decoder, lora, level) for level in levels
    )
    if made.scored:
        backward += head
    if not checkpointing:
        # Checkpointing gives the embeddings a gradient, so that the first block has one as well.
        backward -= block_backward(decoder, lora, levels[0])
        return Work(forward, backward + first_block_backward(decoder, lora, levels[0]), 0)
    last = sum(level.depth * _last_product(decoder, lora, level) for level in levels)
    return Work(forward, backward, forward - head - last)


def block_forward(decoder: Decoder, lora: Lora | None, made: Pass) -> float:
    """Return the FLOPs of a block's forward: 2 a token for each weight, A and B included. Attention
    adds scores and weighted values: 2 products of width x width x q_width a row.
    """
    weights = _weights(decoder) + (lora.block_parameters if lora else 0)
    return 2 * made.tokens * weights + 2 * _attention_product(decoder, made)


def block_backward(decoder: Decoder, lora: Lora, made: Pass) -> float:
    """Return the FLOPs of a block's backward. A frozen matrix passes the gradient on (as much as
    its forward); it needs no own gradient, which would cost as much again. A and B do both. Each
    product of attention has two gradients.
    """
    weights = _weights(decoder) + 2 * lora.block_parameters
    return 2 * made.tokens * weights + 4 * _attention_product(decoder, made)


def first_block_backward(decoder: Decoder, lora: Lora, made: Pass) -> float:
    """Return the same where the block's input, a frozen embedding, needs no gradient: everything
    below the lowest adapter is omitted.
    """
    flops = _Gradients(lora, made.tokens)
    reached = dict.fromkeys(("q", "k", "v"), False)
    for linear in decoder.linears:
        if linear.feeds in ("q", "k", "v", "qkv"):
            fed = flops.through(linear, False)
            for feeds in ("q", "k", "v") if linear.feeds == "qkv" else (linear.feeds,):
                reached[feeds] = fed
    # Gradients of the queries, of the keys, of the scores and of the values: a product each.
    scores = reached["q"] or reached["k"]
    products = sum((*reached.values(), scores))
    flops.total += products * _attention_product(decoder, made)
    [output] = [linear for linear in decoder.linears if linear.feeds == "attention"]
    attention = flops.through(output, any(reached.values()))
    into_mlp = attention and not decoder.parallel
    fed = [flops.through(linear, into_mlp) for linear in decoder.linears if linear.feeds == "up"]
    [down] = [linear for linear in decoder.linears if linear.feeds == "down"]
    flops.through(down, any(fed))
    return flops.total


class _Gradients:
    """Adds up the backward of matrices whose input may or may not need a gradient."""

    def __init__(self, lora: Lora, tokens: float):
        self.total = 0.0
        self._lora = lora
        self._tokens = tokens

    def through(self, linear: Linear, input_asks: bool) -> bool:
        """Count one matrix; returns whether its output has a gradient to receive."""
        targeted = linear in self._lora.targets
        if not (targeted or input_asks):
            return False
        weights = linear.inputs * linear.outputs if input_asks else 0
        if targeted:
            # Of A its own gradient, and that of its input where it is needed; of B both.
            weights += self._lora.rank * (linear.inputs * (1 + input_asks) + 2 * linear.outputs)
        self.total += 2 * self._tokens * weights
        return True


def _weights(decoder: Decoder) -> int:
    return sum(linear.inputs * linear.outputs for linear in decoder.linears)


def _attention_product(decoder: Decoder, made: Pass) -> float:
    return 2 * made.tokens * made.width * decoder.q_width


def _last_product(decoder: Decoder, lora: Lora, made: Pass) -> float:
    """Return the product that a recomputed block leaves out: nothing behind it has to be kept."""
    if decoder.norms > 2:
        return 0
    last = decoder.linears[-1]
    weights = last.outputs * (lora.rank if last in lora.targets else last.inputs)
    return 2 * made.tokens * weights
