"""Products of a training's Hessian with vectors, by differentiating its gradient again.

Knows objectives; the solver is in `formula.py`.
"""

from collections.abc import Sequence

import torch
from accelerate.utils import reduce
from jaxtyping import Float
from torch import Tensor

from rahf.influence.gradients import Part, exact_attention, weights_of_parts
from rahf.influence.objectives import Objective, open_gate

UNUSED = {"allow_unused": True, "materialize_grads": True}
"""A matrix that a loss does not depend on has the gradient 0."""


def hessian_product(
    objective: Objective,
    parts: Sequence[Part],
    vectors: Float[Tensor, "n parameters"],
    batch_size: int,
) -> Float[Tensor, "n parameters"]:
    """Return the Hessian of the training's loss times each vector, in one pass over the pairs,
    which ranks share out.
    """
    weights, total = weights_of_parts(parts), torch.zeros_like(vectors)
    for batch in objective.own_batches(batch_size):
        with exact_attention():
            loss = objective.losses(batch, open_gate).sum()
            flat = flattened(torch.autograd.grad(loss, weights, create_graph=True, **UNUSED))
            for row, vector in enumerate(vectors):
                again = torch.autograd.grad(flat @ vector, weights, retain_graph=True, **UNUSED)
                total[row] += flattened(again)
            del loss, flat
    return reduce(total, reduction="sum") / len(objective.rows)


def flattened(tensors: Sequence[Tensor]) -> Float[Tensor, " parameters"]:
    return torch.cat([tensor.flatten().float() for tensor in tensors])
