"""Step time and peak memory of the alignment beside the published way of it and beside DPO.

    python scripts/benchmarks/step_time.py --model FOLDER [--output FOLDER]
    python scripts/benchmarks/step_time.py --shape docs/shapes/mistral-7b.json --dtype bfloat16

Variants: naive (as the published scripts work), published (with activation checkpointing, as their
launch files have it), rahf (this package, same objective), rahf-mean (its default shift, one mean a
layer), rahf-keeping and rahf-cached (with target_cache, in its first epoch and in later ones), dpo
(TRL's DPOTrainer with the same LoRA). In a repetition all are trained on the same rows, each in a
process of its own, alternately; the next one has other rows, so that its spread is the rows' too.
Writes benchmark.json, benchmark.md and benchmark.png; what they mean: docs/performance.md.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from parts import report
from parts.ceiling import matrix_ceiling
from parts.measure import clock_of, in_new_process, work
from parts.variants import VARIANTS
from parts.workload import TEACHERS, Workload, prepare, response_tokens


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="folder or name of a model")
    model.add_argument("--shape", help="config.json of a model whose weights are drawn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--pairs", type=int, default=2, help="pairs a step, two responses each")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a repetition")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them, at least 1")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument(
        "--lengths", type=float, default=1.0, help="factor on all lengths, for a quick look"
    )
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: for a look on a busy machine"
    )
    parser.add_argument(
        "--first_layer",
        type=float,
        default=0.0,
        help="first block with an adapter, as a fraction of the depth",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first rows")
    parser.add_argument(
        "--counts_only",
        action="store_true",
        help="count what an earlier run with these settings timed into --output and did not count",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"))
    return parser.parse_args()


def repetitions(workload: Workload, options: argparse.Namespace) -> list[Workload]:
    """Return the workload of every repetition, in a folder of its own."""
    return [
        replace(workload, folder=workload.folder / str(repetition))
        for repetition in range(options.repetitions)
    ]


def timed(workload: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Time all variants on one method, interleaved, then the machine's matrix products."""
    steps = {"steps": options.steps, "warmup": options.warmup}
    runs: dict[str, list] = {name: [] for name in options.variants}
    for repetition, drawn in enumerate(repetitions(workload, options)):
        prepare(drawn, options.warmup + options.steps, options.seed + repetition)
        for name in options.variants:
            run = in_new_process("measure", drawn, variant=name, clock=options.clock, **steps)
            runs[name].append(run | {"response_tokens": response_tokens(drawn, **steps)})
            seconds = sum(run["seconds"]) / options.steps
            print(
                f"{workload.method} {name} {repetition + 1}: {seconds:.2f} s a step, "
                f"{run['memory'] / report.GIB:.2f} GiB",
                flush=True,
            )
    ceiling = matrix_ceiling(
        options.device, getattr(torch, options.dtype), clock_of(options.clock, options.device)
    )
    return {"runs": runs, "ceiling": ceiling}


def count(
    runs: dict[str, list[dict[str, Any]]], workload: Workload, options: argparse.Namespace
) -> None:
    """Add the FLOPs of the timed steps to their runs; takes those steps once more, and no clock."""
    for repetition, drawn in enumerate(repetitions(workload, options)):
        for name, repeated in runs.items():
            repeated[repetition] |= in_new_process(
                "count", drawn, variant=name, steps=options.steps, warmup=options.warmup
            )


def times(workloads: dict[str, Workload], options: argparse.Namespace) -> dict[str, Any]:
    """Return what the record holds before anything is counted."""
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if options.device == "cuda":
        machine["device"] = torch.cuda.get_device_name()
    measured = {method: timed(workload, options) for method, workload in workloads.items()}
    return {"settings": settings_of(options), "machine": machine, "measured": measured}


def timed_before(record: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of a run whose counts are missing.

    Raises:
        ValueError: there is no record, or it was made with other settings.
    """
    if not record.exists():
        raise ValueError(f"--counts_only: {record} is not there; run without it to take the times")
    found = json.loads(record.read_text())
    given = settings_of(options)
    other = [name for name in given if given[name] != found["settings"].get(name)]
    if other:
        raise ValueError(
            f"--counts_only: {record} was made with other settings; give the same "
            + ", ".join(f"{name} ({found['settings'].get(name)})" for name in other)
        )
    return found


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    return {name: str(value) for name, value in vars(options).items() if name != "counts_only"}


def main() -> None:
    options = parsed()
    options.output.mkdir(parents=True, exist_ok=True)
    given = Workload(
        folder=options.output,
        method="",
        model=options.model,
        shape=options.shape,
        dtype=options.dtype,
        device=options.device,
        pairs=options.pairs,
        lengths=options.lengths,
        first=options.first_layer,
    )
    workloads = {
        method: replace(given, folder=options.output / method, method=method)
        for method in options.methods
    }
    record = options.output / "benchmark.json"
    result = timed_before(record, options) if options.counts_only else times(workloads, options)
    record.write_text(json.dumps(result, indent=1))
    print(f"all times are in {record}; from here on the machine may have other work", flush=True)
    for method, workload in workloads.items():
        count(result["measured"][method]["runs"], workload, options)
    summaries = {method: report.summarize(of) for method, of in result["measured"].items()}
    text = "\n\n".join(report.table(method, found) for method, found in summaries.items())
    record.write_text(json.dumps(result | {"summary": summaries}, indent=1))
    (options.output / "benchmark.md").write_text(text + "\n")
    report.chart(summaries, options.output / "benchmark.png")
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        main()
