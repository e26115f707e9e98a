"""What the machine can do at most: products of large square matrices, in FLOP/s."""

from collections.abc import Callable

import torch


def matrix_ceiling(
    device: str, dtype: torch.dtype, seconds: Callable[[], float], size: int = 0, times: int = 20
) -> float:
    """Return the rate of the fastest of `times` products of `size` x `size` matrices, by the clock
    of the steps.
    """
    size = size or (8192 if device == "cuda" else 2048)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    taken = []
    for _ in range(times):
        started = seconds()
        left @ right
        taken.append(seconds() - started)
    return 2 * size**3 / min(taken)
