"""Gradients of single examples with respect to the LoRA matrices, from one backward pass.

Each matrix of the adapter is a linear layer: a forward hook keeps its input, a hook on its output
gets the gradient there, and their product is the gradient of a row. `index_add_` over the examples
of rows makes both responses of a pair one example. Prompt positions count; padding does not. Of
packed rows the gradients are those through each row's own tokens: a prompt that two rows share
counts with the first of them. Knows models and rows; knows no loss.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rahf.data.rows import Span
from rahf.models.adapters import POLICY
from rahf.models.base_weights import belongs_to
from rahf.models.capture import find_blocks


class Part(NamedTuple):
    """One matrix of the adapter, and its place in flat vectors of parameters."""

    name: str
    layer: int  # decoder block; -1 outside of them
    module: nn.Linear
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return outputs and inputs."""
        return tuple(self.module.weight.shape)

    def matrices(self, vectors: Float[Tensor, "n parameters"]) -> Float[Tensor, "n out inn"]:
        """Return the part of flat vectors that belongs to this matrix."""
        return vectors[:, self.start : self.stop].unflatten(1, self.shape)


Consumer = Callable[[Part, Tensor, Tensor], None]
"""Function of a matrix, its inputs [lines, seq, in] and its output gradients [lines, seq, out]."""


def lora_parts(model: PeftModel, adapter: str = POLICY) -> tuple[Part, ...]:
    """Return the matrices of a LoRA in the order of the model; of the policy's, the trained ones.

    Raises:
        ValueError: the adapter trains something other than LoRA matrices of linear layers.
    """
    blocks = find_blocks(model).modules
    layer_of = {module: layer for layer, block in enumerate(blocks) for module in block.modules()}
    parts: list[Part] = []
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            for letter, matrix in (("A", module.lora_A[adapter]), ("B", module.lora_B[adapter])):
                if matrix.weight.requires_grad or adapter != POLICY:
                    start = parts[-1].stop if parts else 0
                    where = (f"{name}.lora_{letter}", layer_of.get(module, -1), matrix)
                    parts.append(Part(*where, start, start + matrix.weight.numel()))
    _refuse_others(model, parts, adapter)
    return tuple(parts)


def _refuse_others(model: PeftModel, parts: Sequence[Part], adapter: str) -> None:
    known = {part.module.weight for part in parts if type(part.module) is nn.Linear}
    other = [
        name
        for name, each in model.named_parameters()
        if belongs_to(name, adapter)
        and each not in known
        # Of the policy, blocks above the top target layer are not trained.
        and (each.requires_grad or adapter != POLICY)
    ]
    if other or not parts:
        what = f"trains {other[0]}" if other else "has no trained matrix"
        raise ValueError(
            f"the adapter {what}: influence is computed for LoRA matrices of linear layers. Give "
            "an adapter without DoRA, biases, embeddings or modules_to_save."
        )


def parameter_count(parts: Sequence[Part]) -> int:
    return parts[-1].stop


def weights_of_parts(parts: Sequence[Part]) -> list[nn.Parameter]:
    return [part.module.weight for part in parts]


@contextmanager
def consumed(
    parts: Sequence[Part], mask: Bool[Tensor, "lines seq"], consumer: Consumer
) -> Iterator[None]:
    """Hand inputs and output gradients of every matrix to `consumer` during the backward pass of
    the forward that is made in the context.

    Passes without gradients, as those of frozen views are, are ignored. Padding is set to zero.
    """
    real = None if bool(mask.all()) else mask.unsqueeze(-1)

    def masked(values: Tensor) -> Tensor:
        return values.float() if real is None else values.float() * real

    def hook(part: Part) -> Callable:
        def keep(_: nn.Linear, given: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            inputs = given[0].detach()
            if inputs.shape[:-1] != mask.shape:
                raise ValueError(
                    f"{part.name} reads {tuple(inputs.shape)}, not rows of {tuple(mask.shape)}: "
                    "a model that reorders its tokens, as one with experts does, is not supported."
                )
            output.register_hook(lambda gradient: consumer(part, masked(inputs), masked(gradient)))

        return keep

    handles = [part.module.register_forward_hook(hook(part)) for part in parts]
    try:
        with exact_attention():
            yield
    finally:
        for handle in handles:
            handle.remove()


def exact_attention() -> AbstractContextManager[None]:
    """Return a context in which attention is computed by its formula: alike in batches of any size,
    and differentiable twice.
    """
    return sdpa_kernel(SDPBackend.MATH)


def row_gradients(
    parts: Sequence[Part],
    mask: Bool[Tensor, "lines seq"],
    loss: Callable[[], Tensor],
    spans: Sequence[Span] | None = None,
    also: Consumer | None = None,
) -> Float[Tensor, "rows parameters"]:
    """Return the gradient of `loss()`, a sum over examples, through each row.

    Args:
        spans: places of the own tokens of packed rows, in one line; None: a row a line.
        also: is handed what the gradients are made of.
    """
    rows = len(mask) if spans is None else len(spans)
    found = torch.zeros(rows, parameter_count(parts), device=mask.device)

    def add(part: Part, inputs: Tensor, gradients: Tensor) -> None:
        matrices = part.matrices(found)
        if spans is None:
            matrices.add_(gradients.mT @ inputs)
        for matrix, (start, stop) in zip(matrices, spans or (), strict=False):
            matrix.addmm_(gradients[0, start:stop].T, inputs[0, start:stop])
        if also is not None:
            also(part, inputs, gradients)

    with consumed(parts, mask, add):
        torch.autograd.grad(loss(), weights_of_parts(parts), allow_unused=True)
    return found


def merged(
    gradients: Float[Tensor, "rows parameters"], example: Int[Tensor, " rows"], count: int
) -> Float[Tensor, "examples parameters"]:
    """Return the sum over the rows of each example."""
    return gradients.new_zeros(count, gradients.shape[1]).index_add_(0, example, gradients)


def check_finite_gradients(
    gradients: Float[Tensor, "rows parameters"], names: Sequence[str]
) -> None:
    """Raise ValueError where the gradient of a row is not finite.

    Args:
        names: of the examples of the rows, for the error.
    """
    bad = (~gradients.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the gradient of {names[bad[0]]} is not finite, as are those of {len(bad)} of "
            f"{len(names)} rows of its batch: nothing can be attributed. Check the adapter's "
            "weights and the number format (dtype: float32)."
        )
