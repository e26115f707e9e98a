"""Layers and strength chosen from data beside the best of a grid of 12, on held-out pairs.

    python scripts/compare_choice.py recipes/smollm2-135m/warm.yaml --seeds 5

Every trial trains its own teachers; grid and choice share them. What is compared is the policy's
preference accuracy and margin on the recipe's test split, and the seconds after the teachers.
"""

import argparse
import json
import time
from pathlib import Path

from rahf.cli import main
from rahf.report.tables import markdown

ALPHAS = "0.5,1,2,4"
WINDOWS = "0.2-0.5,0.5-0.8,0.65-0.95"


def run(*command: str) -> float:
    """Seconds that a command of rahf took."""
    start = time.perf_counter()
    status = main(command)
    if status:
        raise SystemExit(status)
    return time.perf_counter() - start


def trial(recipe: str, seed: int, output: Path, options: list[str]) -> list[str]:
    common = [
        "--seed",
        str(seed),
        "--evaluation.models",
        "[policy]",
        "--evaluation.prompts",
        "null",
    ]
    common += [*options, "--evaluation.unrelated_text", "null"]
    grid = ["--alpha", ALPHAS, "--target_layers", WINDOWS, "--output_dir", str(output / "grid")]
    for stage in ("positive", "negative"):
        run("align", recipe, *common, "--output_dir", str(output / "grid"), "--stage", stage)
    of_grid = run("sweep", recipe, *common, *grid)
    teachers = [
        f"--teachers.{name}={output / 'grid/teachers' / name}" for name in ("positive", "negative")
    ]
    auto = ["--alpha", "auto", "--target_layers", "auto", "--output_dir", str(output / "auto")]
    of_choice = run("align", recipe, *common, *teachers, *auto)
    points = json.loads((output / "grid/sweep/results.json").read_text())
    best = max(points, key=lambda each: each["results"]["margin"])
    found = json.loads((output / "auto/metrics.json").read_text())
    return [
        str(seed),
        " ".join(best["point"].values()),
        f"{best['results']['margin']:+.3f}",
        f"{best['results']['preference accuracy']:.0%}",
        f"{found['eval_preference/margins']:+.3f}",
        f"{found['eval_preference/accuracies']:.0%}",
        f"{of_choice / of_grid:.2f}",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("outputs/compare_choice"))
    given, others = parser.parse_known_args()
    rows = [
        trial(given.recipe, seed, given.output / str(seed), others) for seed in range(given.seeds)
    ]
    header = ["seed", "best of grid", "margin", "accuracy", "chosen: margin", "accuracy", "cost"]
    print(markdown(header, rows))
