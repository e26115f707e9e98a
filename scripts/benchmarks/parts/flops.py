"""FLOPs of matrix products as torch counts them, attention by what its kernels are given.

Torch has no formula for the kernel of the CPU, and for those of a GPU one that counts the scores
a second time where the backward pass computes them anew. Attention as plain products would be
counted right everywhere, and would keep all of its scores.
"""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


def attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return the FLOPs of the scores and of the weighted values, the full square, from shapes
    (batch, heads, tokens, width). Keys may have fewer heads, which then serve several queries.
    """
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[-2] * (width + value[-1])


def attention_backward_flops(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    """Return the FLOPs of the backward: two products for each one of the forward pass."""
    return 2 * attention_flops(query, key, value)


FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    aten._scaled_dot_product_flash_attention: attention_flops,
    aten._scaled_dot_product_efficient_attention: attention_flops,
    aten._scaled_dot_product_cudnn_attention: attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
    aten._scaled_dot_product_flash_attention_backward: attention_backward_flops,
    aten._scaled_dot_product_efficient_attention_backward: attention_backward_flops,
    aten._scaled_dot_product_cudnn_attention_backward: attention_backward_flops,
}


class NoModules:
    """Replaces the hooks by which torch's counter tracks modules: they keep tensors alive."""

    parents = ("Global",)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def counting() -> FlopCounterMode:
    """Return a context whose `get_total_flops()` returns what was computed in it so far."""
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    counter.mod_tracker = NoModules()
    return counter
