"""Texts through one model: hidden states, neurons and codes of the first tokens of each text.

The same tokens are read as in the training of a dictionary. Knows models and texts; learns nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from rahf.interpret.features.corpus import corpus_of_texts
from rahf.interpret.features.dictionary import Dictionary, SparseCodes, joined
from rahf.interpret.features.probing import pooled
from rahf.interpret.features.streams import Piece, StateReader, mlp_of
from rahf.models.capture import find_blocks


class OfTexts(NamedTuple):
    """Means over the tokens of each text."""

    codes: SparseCodes | None  # None: no dictionary was given
    hidden: Float[Tensor, "texts d_model"]


class Batch(NamedTuple):
    """Tokens of a few texts, one after the other."""

    hidden: Float[Tensor, "tokens d_model"]
    ids: Int[Tensor, " tokens"]
    following: Int[Tensor, " tokens"]  # id of the next token; -1 at the end of a piece
    owners: Int[Tensor, " tokens"]  # number of the text
    neurons: Float[Tensor, "tokens neurons"] | None


class First(NamedTuple):
    """The first piece of each text that has a token to read."""

    texts: list[int]  # their numbers
    pieces: list[Piece]


def first_pieces(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int, tokens: int = 2**40
) -> First:
    """Return pieces of at most `length` tokens, until `tokens` tokens are read."""
    corpus = corpus_of_texts(texts, tokenizer, tokens=tokens, length=length)
    firsts = [
        index
        for index in range(corpus.pieces)
        if index == 0 or corpus.documents[index] != corpus.documents[index - 1]
    ]
    return First(corpus.documents[firsts].tolist(), [corpus.piece(index) for index in firsts])


def read_texts(
    model: nn.Module,
    dictionary: Dictionary,
    first: First,
    pad_token_id: int,
    *,
    batch_size: int = 16,
    neurons: bool = False,
    label: str = "reading texts",
) -> Iterator[Batch]:
    """Yield the states at the dictionary's site, and the neurons of that layer where requested."""
    origin = dictionary.origin
    reader = StateReader(model, (origin.layer,), origin.site, "states", pad_token_id, batch_size)
    bar = tqdm(total=len(first.pieces), desc=label, leave=False)
    with bar:
        for start in range(0, len(first.pieces), batch_size):
            pieces = first.pieces[start : start + batch_size]
            with _neurons(model, origin.layer) if neurons else _nothing() as found:
                hidden = reader.states(pieces)[0]
            ids, following, owners = [], [], []
            for number, (piece, read) in zip(first.texts[start:], pieces, strict=False):
                ids.append(torch.tensor(piece)[read])
                following.append(torch.tensor([*piece[1:], -1])[read])
                owners += [number] * int(read.sum())
            yield Batch(
                hidden,
                torch.cat(ids),
                torch.cat(following),
                torch.tensor(owners),
                _at(found, pieces) if neurons else None,
            )
            bar.update(len(pieces))


def of_texts(
    batches: Iterator[Batch], dictionary: Dictionary | None, texts: int, d_model: int
) -> OfTexts:
    """Return what every text has on average; a text that was not read has zeros."""
    parts, last = [], -1
    hidden, counts = torch.zeros(texts, d_model), torch.zeros(texts)
    for batch in batches:
        hidden.index_add_(0, batch.owners, batch.hidden.cpu())
        counts.index_add_(0, batch.owners, torch.ones(len(batch.owners)))
        if dictionary is not None:
            codes = dictionary.encode(batch.hidden)
            codes = SparseCodes(*(part.cpu() for part in codes[:3]), codes.latents)
            stop = int(batch.owners[-1])
            parts.append(pooled(codes, batch.owners - last - 1, stop - last))
            last = stop
    if parts and last < texts - 1:
        parts.append(SparseCodes(torch.zeros(texts - last).long(), *_no_entries(codes)))
    codes = joined(parts) if parts else None
    return OfTexts(codes, hidden / counts.clamp(min=1)[:, None])


def _no_entries(codes: SparseCodes) -> tuple[Tensor, Tensor, int]:
    return codes.indices[:0], codes.values[:0], codes.latents


def neuron_module(model: nn.Module, layer: int) -> nn.Module:
    """Return the linear layer whose inputs are the neurons of a layer's MLP.

    Raises:
        ValueError: a model with an adapter; no linear layer leads back to the residual stream.
    """
    if isinstance(model, PeftModel):
        raise ValueError("neurons are read of a full model; give the base in place of the adapter.")
    width = model.config.get_text_config().hidden_size
    found = [
        module
        for module in mlp_of(find_blocks(model).modules[layer]).modules()
        if isinstance(module, nn.Linear | Conv1D)
        and (module.out_features if isinstance(module, nn.Linear) else module.nf) == width
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__}: {len(found)} linear layers of its MLP lead back to the "
            "residual stream, so its neurons are ambiguous; compare a model with a dense MLP."
        )
    return found[0]


@contextmanager
def _neurons(model: nn.Module, layer: int) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    keep: Callable = lambda _module, args: found.append(args[0])  # noqa: E731
    hook = neuron_module(model, layer).register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


@contextmanager
def _nothing() -> Iterator[list[Tensor]]:
    yield []


def _at(found: list[Tensor], pieces: Sequence[tuple]) -> Float[Tensor, "tokens neurons"]:
    """Return the recorded rows of the tokens that are read, piece by piece."""
    rows = found[0]
    width = max(len(ids) for ids, _ in pieces)
    rows = rows.view(len(pieces), width, -1)
    parts = [
        row[: len(ids)][read.to(row.device)] for row, (ids, read) in zip(rows, pieces, strict=True)
    ]
    return torch.cat(parts).float()
