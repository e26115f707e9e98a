"""Measure what influence costs: CPU seconds a pair to fit EK-FAC, to score, and for the rivals.

    OMP_NUM_THREADS=1 python scripts/benchmarks/influence.py --adapter outputs/dpo --pairs 8

The adapter is one of `rahf dpo`; its first pairs are read. Loading the model, the eigenvectors and
the hidden states of the queries do not grow with the pairs and are left out or shown beside them.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from rahf.influence.baselines import baselines, mean_states
from rahf.influence.curvature import fit_curvature
from rahf.influence.factors import fit_ekfac
from rahf.influence.gradients import lora_parts
from rahf.influence.objectives import preference_objective
from rahf.influence.queries import ask, log_probability
from rahf.influence.scores import score_pairs
from rahf.influence.trained import open_training, read_training
from rahf.models.adapters import pad_id

QUERIES = 5


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, required=True, help="folder of rahf dpo")
    parser.add_argument("--pairs", type=int, default=8, help="pairs that are read (default: 8)")
    parser.add_argument("--batch_size", type=int, default=8, help="pairs at once (default: 8)")
    parser.add_argument("--bf16", action="store_true", help="multiply in bfloat16")
    return parser.parse_args()


def measured(what: str, pairs: int, work: Callable):
    """Print the CPU seconds a pair of some work and return what it returns."""
    begun = time.process_time()
    found = work()
    print(f"{what:28} {(time.process_time() - begun) / pairs:.3f} CPU seconds a pair")
    return found


def main() -> None:
    options = parse()
    subject = open_training(read_training(options.adapter))
    model, pad, size = subject.objective.model, pad_id(subject.tokenizer), options.batch_size
    rows = subject.rows.select(range(min(options.pairs, len(subject.rows))))
    pairs, parts = len(rows), lora_parts(model)

    def objective():
        """Return the loss as a process of its own reads it, with nothing known of the base."""
        made = preference_objective(model, rows, pad, subject.training.beta)
        return replace(made, bf16=options.bf16)

    asked_of = [rows[place] for place in range(min(QUERIES, pairs))]
    queries = [log_probability("q", row["prompt_ids"], row["chosen_ids"]) for row in asked_of]
    asked = ask(model, parts, queries, pad, size).gradients
    with tempfile.TemporaryDirectory() as folder:
        how = (objective(), parts, size, Path(folder))
        measured("fit, with eigenvectors", pairs, lambda: fit_ekfac(*how))
        curvature = fit_curvature("ekfac", how[0], parts, Path(folder), size)
    solved, solve = curvature.solve(asked), curvature.solve_pairs
    given = (objective(), parts, solved, asked, solve, size)
    scores = measured("score", pairs, lambda: score_pairs(*given))
    seen = (rows, queries, pad, size, scores.seen)
    measured("rivals, with their queries", pairs, lambda: baselines(model, *seen))
    texts = [row["prompt_ids"] + row["chosen_ids"] for row in asked_of]
    measured("  of which the queries", pairs, lambda: mean_states(model, texts, pad, size))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{pairs} pairs, {torch.get_num_threads()} thread, peak {peak:.1f} GiB")


if __name__ == "__main__":
    main()
