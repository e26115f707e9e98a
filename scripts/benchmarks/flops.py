"""FLOPs that a step of each variant needs, by formulas: for a model too large for the machine.

    python scripts/benchmarks/flops.py --shape docs/shapes/mistral-7b.json --pairs 8

The rows are those of `step_time.py` with the same pairs, steps, warmup, repetitions and seed.
"""

import argparse
from pathlib import Path

from parts.formulas import FORMULAS, step_flops
from parts.workload import TEACHERS, Workload, draw_rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="folder or name of a model")
    model.add_argument("--shape", help="config.json of a model")
    parser.add_argument("--pairs", type=int, default=2, help="pairs a step, two responses each")
    parser.add_argument("--steps", type=int, default=4, help="counted steps of a repetition")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--variants", nargs="+", default=list(FORMULAS), choices=list(FORMULAS))
    parser.add_argument("--first_layer", type=float, default=0.0, help="as that of step_time.py")
    parser.add_argument("--seed", type=int, default=0, help="of the first rows")
    options = parser.parse_args()
    print("| method | variant | TFLOP/step | over rahf |\n|---|---|---|---|")
    for method in options.methods:
        workload = Workload(
            folder=Path(),
            method=method,
            model=options.model,
            shape=options.shape,
            dtype="float32",
            device="cpu",
            pairs=options.pairs,
            first=options.first_layer,
        )
        steps = counted_steps(workload, options)
        needed = {
            variant: sum(step_flops(workload, variant, pairs) for pairs in steps) / len(steps)
            for variant in {"rahf": None, **dict.fromkeys(options.variants)}
        }
        for variant in options.variants:
            over = needed[variant] / needed["rahf"]
            print(f"| {method.upper()} | {variant} | {needed[variant] / 1e12:.3g} | {over:.2f} |")


def counted_steps(workload: Workload, options: argparse.Namespace) -> list[list]:
    """Return the pairs of every step of all repetitions, less those before the clock starts."""
    found = []
    for repetition in range(options.repetitions):
        rows = draw_rows(workload, options.warmup + options.steps, options.seed + repetition)
        pairs = workload.pairs
        starts = range(options.warmup * pairs, len(rows), pairs)
        found += [rows[start : start + pairs] for start in starts]
    return found


if __name__ == "__main__":
    main()
