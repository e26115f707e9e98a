"""What one accelerator does with the package, in ten minutes: time, memory and the engines.

    make gpu-check
    python scripts/gpu_check.py [--budget SECONDS] [--output FOLDER]

Weights are drawn, of the shapes in docs/shapes; nothing is fetched. Each measurement is a process
of its own. Prints a table and writes it, gpu_check.md, beside gpu_check.json with every figure.
What fails is listed with its reason, and so is what the budget or the card leaves out. The status
is 1 where a check has failed. What it measures: docs/performance.md.
"""

import argparse
import json
import os
import platform
import sys
import time
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "benchmarks"))

import datasets
import torch
import transformers
from parts.checks import Check, Outcome, run_checks
from parts.gpu import Bench, engine, memory, own_tests, step
from parts.gpu_table import table
from parts.measure import work
from parts.workload import Workload

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"1B": "tinyllama-1.1b", "7B": "mistral-7b"}
VARIANTS = ("rahf", "naive", "dpo", "rahf-rows", "rahf-padded")


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=600, help="seconds for all checks")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=8, help="pairs a step, two responses each")
    parser.add_argument("--steps", type=int, default=4, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them, at least 1")
    parser.add_argument("--lengths", type=float, default=1.0, help="factor on all lengths")
    parser.add_argument("--ceiling_size", type=int, default=8192, help="rows of the square matrix")
    parser.add_argument("--shapes", type=Path, nargs="+", help="config.json files, small to large")
    parser.add_argument("--only", nargs="+", help="words: checks whose name has one of them")
    return parser.parse_args(arguments)


def bench_of(options: argparse.Namespace, shape: Path, folder: Path) -> Bench:
    """Return where and on what the checks of one shape are made."""
    workload = Workload(
        folder=folder / shape.stem,
        method="dual",
        model=None,
        shape=str(shape),
        dtype="bfloat16",
        device=options.device,
        pairs=options.pairs,
        lengths=options.lengths,
    )
    return Bench(workload, options.steps, options.warmup)


def shapes_of(options: argparse.Namespace) -> dict[str, Path]:
    """Return the shapes by the names that the table has for them."""
    if options.shapes:
        return {path.stem: path for path in options.shapes}
    return {name: ROOT / "docs" / "shapes" / f"{stem}.json" for name, stem in SHAPES.items()}


def checks_of(benches: dict[str, Bench]) -> list[Check]:
    """Return the checks, the most important first: the last ones are left out first."""
    names = list(benches)
    first = names[0]
    return [
        *(
            Check(f"{name} {variant}", 40, step(benches[name], variant))
            for name in names
            for variant in VARIANTS
        ),
        *(Check(f"{name} rahf, rows of one length", 40, memory(benches[name])) for name in names),
        Check(f"{first} rahf, 4 bits", 60, memory(benches[first], bits=4)),
        *(
            Check(f"{first} rahf, {config}, one rank", 60, engine(benches[first], config))
            for config in ("zero2", "zero3", "fsdp2")
        ),
        Check("tests that need a GPU", 60, own_tests(benches[first])),
        *(Check(f"{name} rahf, 4 bits", 90, memory(benches[name], bits=4)) for name in names[1:]),
    ]


def machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }


def found_within(options: argparse.Namespace, folder: Path) -> tuple[list[Outcome], dict[str, Any]]:
    """Return the outcomes of the checks, and the ceiling; `folder`: of rows, adapters, models."""
    started = time.perf_counter()
    shapes = shapes_of(options).items()
    benches = {name: bench_of(options, path, folder) for name, path in shapes}
    ceiling = next(iter(benches.values())).ceiling(options.ceiling_size, options.budget)
    for bench in benches.values():
        bench.card = ceiling["memory"]
    checks = [
        check
        for check in checks_of(benches)
        if not options.only or any(word in check.name for word in options.only)
    ]
    left = options.budget - (time.perf_counter() - started)
    tell = partial(print, flush=True)
    return run_checks(checks, left, time.perf_counter, tell), ceiling


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    os.environ["HF_HUB_OFFLINE"] = "1"
    started = time.perf_counter()
    with TemporaryDirectory(dir=options.output) as folder:
        outcomes, ceiling = found_within(options, Path(folder))
    text = table(outcomes, ceiling)
    found = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "settings": {name: str(value) for name, value in vars(options).items()},
        "machine": machine() | ceiling,
        "seconds": time.perf_counter() - started,
        "checks": [outcome.as_dict() for outcome in outcomes],
    }
    (options.output / "gpu_check.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.output / "gpu_check.md").write_text(text + "\n")
    print(text)
    return int(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        sys.exit(main())
