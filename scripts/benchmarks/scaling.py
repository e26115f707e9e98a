"""Seconds and FLOPs of a step against the length of rows and their number.

    python scripts/benchmarks/scaling.py --model FOLDER [--lengths 64 128 256 512] [--pairs 1 2 4 8]

Prints a table of both, per step and per token.
"""

import argparse
import contextlib
import os
import tempfile
from pathlib import Path

import torch
from parts.measure import clock_of
from parts.scaling import per_step
from parts.workload import Workload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--method", default="dual", choices=["dual", "scit"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    options = parser.parse_args()
    seconds = clock_of(options.clock, options.device)
    print("| tokens per row | rows | s/step | ms/token | MFLOP/token |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(
            folder=Path(folder),
            method=options.method,
            model=options.model,
            shape=None,
            dtype=options.dtype,
            device=options.device,
            pairs=1,
        )
        for length in options.lengths:
            for pairs in options.pairs:
                cell = (workload, length, pairs)
                with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                    taken = min(per_step(*cell, options.steps, seconds))
                    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                        [flops] = per_step(*cell, 1, counter.get_total_flops)
                tokens = 2 * pairs * length
                print(
                    f"| {length} | {2 * pairs} | {taken:.3f} | {1e3 * taken / tokens:.3f} "
                    f"| {flops / tokens / 1e6:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
