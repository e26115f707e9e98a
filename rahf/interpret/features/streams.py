"""Hidden states of a model, piece by piece of a text: what dictionaries are trained on.

The forward pass stops at the highest layer that is read; several layers are read in one pass.
Differences are those of the aligned model to its base: adapter on and adapter off, one model in
memory. Knows models and pieces of ids; learns nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from peft import PeftModel
from torch import Tensor, nn

from rahf.directions.vectors import check_finite_states
from rahf.interpret.features.corpus import Corpus, Piece
from rahf.interpret.features.dictionary import Kind, Site
from rahf.models.adapters import POLICY, frozen_pass
from rahf.models.capture import find_blocks, record, replaced_blocks
from rahf.models.likelihood import rows_for, state_inputs

MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
"""Names of the MLP in a decoder block of transformers."""

BLOCK = 2**16
"""Tokens whose states are kept and shuffled together."""


MASSIVE = 10.0
"""Norm, over the median of all tokens, from which a state is massive."""


class StateReader(NamedTuple):
    """Reads the states of pieces from a model."""

    model: nn.Module
    layers: tuple[int, ...]  # ascending
    site: Site
    kind: Kind
    pad_token_id: int
    batch_size: int = 16  # pieces in one forward pass
    adapter: str | None = POLICY  # whose states are read where the model has adapters; None: base

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def __call__(
        self, pieces: Sequence[Piece], report: Callable[[int], object] = id
    ) -> Float[Tensor, "layers tokens d_model"]:
        """Return the states of the tokens that are read, in the order of the pieces.

        Args:
            report: called after each forward pass with the number of tokens that it read.

        Raises:
            ValueError: a state is not finite.
        """
        found: dict[int, Tensor] = {}
        order = sorted(range(len(pieces)), key=lambda index: len(pieces[index].ids))
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            states = self.states([pieces[index] for index in batch])
            counts = [int(pieces[index].read.sum()) for index in batch]
            found |= zip(batch, states.split(counts, dim=1), strict=True)
            report(sum(counts))
        return torch.cat([found[index] for index in range(len(pieces))], dim=1)

    def states(self, pieces: Sequence[Piece]) -> Float[Tensor, "layers tokens d_model"]:
        """Return the states of a batch of pieces, in one forward pass a model."""
        rows = rows_for(
            self.model, [piece.ids for piece in pieces], [[] for _ in pieces], self.pad_token_id
        )
        read = nn.utils.rnn.pad_sequence([piece.read for piece in pieces], batch_first=True)
        wanted = read.flatten().nonzero().squeeze(1).to(rows["input_ids"].device)
        states = self._of(self.adapter, rows, wanted)
        if self.kind == "differences":
            states = states - self._of(None, rows, wanted)
        texts = [row for row, piece in enumerate(pieces) for _ in range(int(piece.read.sum()))]
        check_finite_states(states, self.layers, texts)
        return states

    def _of(self, adapter: str | None, rows: dict, wanted: Tensor) -> Tensor:
        """Return the states with the adapter on, or off (None)."""
        with ExitStack() as context:
            if isinstance(self.model, PeftModel):
                context.enter_context(frozen_pass(self.model, adapter))
            context.enter_context(torch.no_grad())
            if self.site == "residual":
                recording = context.enter_context(
                    record(self.model, self.layers, wanted, stop=True)
                )
                self.model(**state_inputs(rows))
                return recording.stack()
            outputs = context.enter_context(recorded_mlps(self.model, self.layers))
            self.model(**state_inputs(rows))
            states = [
                outputs[layer].flatten(0, -2).index_select(0, wanted) for layer in self.layers
            ]
            return torch.stack(states).float()


def ordinary(states: Float[Tensor, "layers tokens d_model"]) -> Bool[Tensor, " tokens"]:
    """Return which tokens have a massive state in no layer.

    A few tokens that a model uses as the first of a text have states a hundred times as large as
    others (Sun et al. 2024, arXiv 2402.17762): nearly all variance, and all loss, would be theirs.
    """
    sizes = states.norm(dim=2)
    limits = MASSIVE * sizes.median(dim=1, keepdim=True).values
    return ((sizes <= limits) | (limits == 0)).all(0)


@contextmanager
def recorded_mlps(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Record the outputs of the MLPs of blocks, in a forward that stops at the last of them."""
    blocks, outputs = find_blocks(model), {}

    def hook(layer: int):
        def keep(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            outputs[layer] = output if isinstance(output, Tensor) else output[0]

        return keep

    with ExitStack() as context:
        for layer in layers:
            handle = mlp_of(blocks.modules[layer]).register_forward_hook(hook(layer))
            context.callback(handle.remove)
        context.enter_context(replaced_blocks(blocks, list(blocks.modules[: max(layers) + 1])))
        yield outputs


def mlp_of(block: nn.Module) -> nn.Module:
    """Return the MLP of a decoder block.

    Raises:
        ValueError: no child of the block has one of the names in use.
    """
    children = dict(block.named_children())
    for name in MLP_NAMES:
        if name in children:
            return children[name]
    raise ValueError(
        f"{type(block).__name__} has no MLP by a name that is known ({', '.join(MLP_NAMES)}); its "
        f"children are {', '.join(children)}. Read the residual stream (--site residual)."
    )


class Schedule(NamedTuple):
    """Which pieces are read in which block of tokens, in an order that the seed decides.

    A block is read, shuffled and cut into batches as a whole, so a training can resume at any block
    and what a batch holds does not depend on the number of pieces in a forward pass.
    """

    corpus: Corpus
    blocks: tuple[Int64[Tensor, " pieces"], ...]
    tokens: tuple[int, ...]  # that each block reads
    seed: int

    def batches(
        self, block: int, states: Float[Tensor, "layers tokens d_model"], size: int
    ) -> Iterator[Float[Tensor, "layers batch d_model"]]:
        """Yield a block's states in shuffled batches of about `size` tokens."""
        count = states.shape[1]
        order = torch.from_numpy(np.random.default_rng([self.seed, block]).permutation(count))
        for part in order.tensor_split(max(1, round(count / size))):
            yield states[:, part.to(states.device)]


class BlockReader:
    """Reads the blocks of a schedule; a text that comes again and fits into a block is read once.

    It is read in one order, whichever block is asked for first, so that a training that resumes
    has the same states.
    """

    def __init__(self, reader: StateReader, plan: Schedule):
        self._reader, self._plan = reader, plan
        sequence, counts = torch.cat(plan.blocks), plan.corpus.counts()
        self._distinct = sequence.unique()
        tokens = int(counts[self._distinct].sum())
        self.once = len(self._distinct) < len(sequence) and tokens <= max(plan.tokens)
        self.tokens = tokens if self.once else sum(plan.tokens)
        """Tokens that go through the model."""
        lengths = counts[self._distinct]
        self._starts, self._lengths = lengths.cumsum(0) - lengths, lengths
        self._kept: Tensor | None = None

    def __call__(
        self, block: int, report: Callable[[int], object] = id
    ) -> Float[Tensor, "layers tokens d_model"]:
        """Return the states of a block; see `StateReader`."""
        pieces = self._plan.blocks[block]
        if not self.once:
            return self._read(pieces, report)
        done = 0
        if self._kept is None:
            self._kept, done = self._read(self._distinct, report), self.tokens
        report(self._plan.tokens[block] - done)
        places = torch.searchsorted(self._distinct, pieces)
        starts, lengths = self._starts[places], self._lengths[places]
        first = lengths.cumsum(0) - lengths  # row of the block at which each piece begins
        rows = torch.arange(int(lengths.sum())) + (starts - first).repeat_interleave(lengths)
        return self._kept[:, rows.to(self._kept.device)]

    def _read(self, pieces: Int64[Tensor, " pieces"], report: Callable[[int], object]) -> Tensor:
        return self._reader([self._plan.corpus.piece(index) for index in pieces.tolist()], report)


def schedule(
    corpus: Corpus,
    pieces: Int64[Tensor, " pieces"],
    tokens: int,
    seed: int,
    block_tokens: int = BLOCK,
) -> Schedule:
    """Return blocks that read `tokens` tokens, pieces more than once where they have fewer."""
    counts = corpus.counts()
    total, epochs = int(counts[pieces].sum()), []
    for epoch in range(-(-tokens // total)):
        order = np.random.default_rng([seed, epoch]).permutation(len(pieces))
        epochs.append(pieces[torch.from_numpy(order)])
    sequence = torch.cat(epochs)
    before = counts[sequence].cumsum(0) - counts[sequence]
    sequence = sequence[before < tokens]
    # A block ends with the piece that fills it.
    number = (before[: len(sequence)] // block_tokens).tolist()
    cuts = [place for place in range(1, len(number)) if number[place] != number[place - 1]]
    blocks = sequence.tensor_split(cuts)
    return Schedule(corpus, blocks, tuple(int(counts[block].sum()) for block in blocks), seed)
