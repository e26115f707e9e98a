"""What the machine can do at most: products of large square matrices, in FLOP/s."""

import time

import torch


def matrix_ceiling(device: str, dtype: torch.dtype, size: int = 0, seconds: float = 2.0) -> float:
    """The fastest of many products of `size` x `size` matrices made in about `seconds`."""
    size = size or (8192 if device == "cuda" else 2048)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest
