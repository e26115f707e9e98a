"""Memory of one stage of a recipe, measured in a process of its own, beside the plan's estimate.

    python scripts/benchmarks/memory.py RECIPE.yaml --stage alignment --tokens 512 [--KEY VALUE ...]

Measured is the peak of the process's resident memory above what it held once everything had been
imported. All rows are made for the purpose and have (nearly) `--tokens` tokens, so that the longest
batch, which the plan counts, is every batch. With `--tight` the allocator keeps nothing that has
been freed, and tensors are compared with tensors. CPU, Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rahf.plan.command import PlanOptions, case_of
from rahf.plan.estimate import estimate
from rahf.plan.memory import GIB
from rahf.recipe.files import checked_recipe

TIGHT = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Blocks of glibc that are larger go back to the system when they are freed: tensors alone are
measured, and compared with the plan's tensors.
"""

PAIRS = 64
SHORTER = 48
"""Words that every second row has less; about as many tokens as a prompt and its template take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--stage", default="alignment")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--tight", action="store_true", help="let the allocator give memory back")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    (run if options.run else compare)(options, overrides)


def compare(options: argparse.Namespace, overrides: list[str]) -> None:
    """Run the stage in a new process and print its peak beside the plan."""
    with tempfile.TemporaryDirectory() as folder:
        given = [*overrides, *fixed_keys(Path(folder), options.tokens)]
        command = [sys.executable, __file__, str(options.recipe), "--stage", options.stage, "--run"]
        environment = {**os.environ, **(TIGHT if options.tight else {})}
        done = subprocess.run(
            [*command, *given], stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
        measured = json.loads(done.stdout.splitlines()[-1])
        case = case_of(checked_recipe(options.recipe, given), PlanOptions())[0]
        [planned] = [part for part in estimate(case) if part.stage.name == options.stage]
    total = planned.tensors if options.tight else planned.total
    figures = {**measured, "planned": total, "ratio": total / measured["measured"]}
    print("  ".join(f"{name} {_printed(value)}" for name, value in figures.items()))


def _printed(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value / GIB:.3f} GiB"


def fixed_keys(folder: Path, tokens: int) -> list[str]:
    """Return the keys that make every row `tokens` long and keep the run in `folder`."""
    lines = []
    for row in range(PAIRS):
        # Every second row is a little shorter: rows of one length would need no attention mask.
        words = " yes" * (tokens if row % 2 else tokens - SHORTER)
        sides = {"chosen": f"yes{words}", "rejected": f"no{words}"}
        lines.append(json.dumps({"prompt": f"Count on from {row:03d}.", **sides}))
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(
            "\n".join(lines[: PAIRS if split == "train" else 16])
        )
    keys = {"dataset_name": folder, "max_length": tokens, "output_dir": folder / "out"}
    return [
        *(f"--{key}={value}" for key, value in keys.items()),
        f"--max_prompt_length={tokens // 2}",
        *("--max_steps=2", "--teachers.max_steps=2", "--save_strategy=no"),
        *("--use_cpu=true", "--disable_tqdm=true"),
    ]


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Run the stage, after the data has been prepared in the same way as by `rahf prepare`."""
    from rahf.pipeline import run as pipeline
    from rahf.pipeline.recipe_data import fill_cache

    recipe = checked_recipe(options.recipe, overrides)
    print(fill_cache(recipe))
    before = status("VmRSS")
    pipeline.run_pipeline(recipe, stage=options.stage, quiet=True)
    print(json.dumps({"before": before, "measured": status("VmHWM") - before}))


def status(name: str) -> int:
    """Return the bytes of this process under a name of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    main()
