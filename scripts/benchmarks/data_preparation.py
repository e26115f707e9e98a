"""Time and peak memory of preparing preference pairs, first and again.

    python scripts/benchmarks/data_preparation.py --model FOLDER [--pairs 15000 60000]

Writes pairs of UltraFeedback's lengths, then runs `rahf prepare` on them twice, each time in a
process of its own: the first reads, checks, tokenises and caches, the second finds the cache. The
seconds are those of the complete process, Python's start and all imports among them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parts.texts import words_of, write_pairs

ROOT = Path(__file__).parents[2]
RECIPE = """
method: {method}
model_name_or_path: {model}
dataset_name: {data}
dataset_test_split: null
dataset_num_proc: {num_proc}
max_prompt_length: 256
max_length: 768
output_dir: {folder}/out
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder whose tokenizer is used")
    parser.add_argument("--pairs", type=int, nargs="+", default=[15_000, 60_000])
    parser.add_argument("--method", default="dual", choices=["dual", "scit"])
    parser.add_argument("--num_proc", type=int)
    options = parser.parse_args()
    words = [word for path in sorted(ROOT.glob("docs/*.md")) for word in words_of(path)]
    print("| pairs | MB | first: s | peak GiB | again: s | peak GiB |\n|---|---|---|---|---|---|")
    for pairs in options.pairs:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "pairs.jsonl"
            write_pairs(data, pairs, words)
            recipe = Path(folder) / "recipe.yaml"
            recipe.write_text(
                RECIPE.format(
                    method=options.method,
                    model=Path(options.model).resolve(),
                    data=data,
                    num_proc="null" if options.num_proc is None else options.num_proc,
                    folder=folder,
                )
            )
            cells = [
                f"{seconds:.1f} | {peak:.2f}"
                for seconds, peak in (prepared(recipe, Path(folder)) for _ in range(2))
            ]
            print(
                f"| {pairs:,} | {data.stat().st_size / 1e6:.0f} | {' | '.join(cells)} |", flush=True
            )


def prepared(recipe: Path, folder: Path) -> tuple[float, float]:
    """Return the seconds of `rahf prepare` and the largest resident memory of one of its processes,
    GiB.
    """
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache")}
    environment["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "rahf", "prepare", str(recipe)],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"rahf prepare {recipe} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


if __name__ == "__main__":
    main()
