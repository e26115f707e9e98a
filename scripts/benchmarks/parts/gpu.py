"""The checks of `gpu_check.py`: each returns a function that gives figures in the time left.

A figure that `gpu_table.py` shows has one name in all checks. Knows workloads and processes; knows
no budget beyond the seconds that it is given.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from parts.checks import Left, LeftOutError
from parts.formulas import step_flops
from parts.measure import in_new_process, run_alone
from parts.recipes import planned
from parts.scaling import rows_of_length
from parts.workload import Workload, prepare

from rahf.models.shapes import read_decoder

ROOT = Path(__file__).resolve().parents[3]
ROW = 512
"""Tokens of each row where all have one length: SCIT's responses are aligned up to so many."""

COPIES = {"naive": 4}
"""Full models of a variant, where it has more than one (DUAL)."""

NEEDED = dict.fromkeys(("rahf-padded", "rahf-rows", "rahf-loaded"), "rahf")
"""The variant whose formula has what a step needs: padding is not needed."""

Run = Callable[[Left], dict[str, Any]]


@dataclass
class Bench:
    """One shape on one device."""

    workload: Workload
    steps: int
    warmup: int
    card: int | None = None  # bytes of the device's memory

    @property
    def all_steps(self) -> int:
        return self.warmup + self.steps

    def prepared(self) -> Workload:
        """Return the workload with its rows and adapters on disk."""
        if not self.workload.folder.exists():
            prepare(self.workload, self.all_steps)
        return self.workload

    def measured(self, workload: Workload, variant: str, **how: Any) -> dict[str, Any]:
        """Return what a process of its own measures, as figures."""
        found = in_new_process(
            "measure",
            workload,
            variant=variant,
            steps=self.steps,
            warmup=self.warmup,
            clock="wall",
            **how,
        )
        figures = {
            "seconds_per_step": sum(found["seconds"]) / self.steps,
            "peak_bytes": found["memory"],
            "until_first_step_ended": found["until_first_step_ended"],
            "needed_flops": self._needed(workload, variant),
        }
        return figures | ({"last_loss": found["losses"][-1]} if found["losses"] else {})

    def ceiling(self, size: int, limit: float) -> dict[str, Any]:
        """Return the rate of the fastest matrix product, and the device."""
        return in_new_process("ceiling", self.workload, size=size, limit=limit)

    def _needed(self, workload: Workload, variant: str) -> float:
        """Return the FLOPs that a timed step needs on average, by formula."""
        rows, pairs = list(workload.rows()), workload.pairs
        starts = range(self.warmup * pairs, self.all_steps * pairs, pairs)
        formula = NEEDED.get(variant, variant)
        steps = [step_flops(workload, formula, rows[start : start + pairs]) for start in starts]
        return sum(steps) / len(steps)


def step(bench: Bench, variant: str) -> Run:
    """Time steps of a variant on rows of the published lengths."""

    def run(left: Left) -> dict[str, Any]:
        workload = bench.prepared()
        refuse_weights(bench, COPIES.get(variant, 1))
        return bench.measured(workload, variant, limit=left())

    return run


def refuse_weights(bench: Bench, copies: int) -> None:
    """Leave a check out whose weights alone are more than the card holds."""
    workload = bench.workload
    decoder = read_decoder(workload.config().to_dict(), str(workload.shape))
    weights = copies * decoder.parameters * getattr(torch, workload.dtype).itemsize
    if bench.card is not None and weights > bench.card:
        raise LeftOutError(
            f"{copies} x the weights are {weights / 2**30:.0f} GiB, the card has "
            f"{bench.card / 2**30:.0f}"
        )


def memory(bench: Bench, bits: int | None = None) -> Run:
    """Compare the peak with the plan's tensors, on rows of one length: each batch is the longest,
    which the plan counts.
    """

    def run(left: Left) -> dict[str, Any]:
        workload = same_length(bench)
        variant = "rahf"
        if bits is not None:
            workload, variant = replace(on_disk(workload, left), bits=bits), "rahf-loaded"
        plan = planned(workload).tensors
        return bench.measured(workload, variant, limit=left()) | {"planned_bytes": plan}

    return run


def same_length(bench: Bench) -> Workload:
    """Return SCIT's workload with rows of one length that share nothing."""
    given = bench.workload
    workload = replace(
        given, method="scit", folder=given.folder.parent / f"{given.folder.name}-scit"
    )
    if not workload.folder.exists():
        prepare(workload, steps=1)
        count = bench.all_steps * workload.pairs
        rows = rows_of_length(count, workload.scaled(ROW), workload.config().vocab_size)
        for row in rows:  # under one prompt all views would be alike, and the loss 0
            row["negative_prompt_ids"] = row["prompt_ids"][::-1]
        Dataset.from_list(rows).save_to_disk(str(workload.folder / "same_length"))
    return replace(workload, row_folder="same_length")


def on_disk(workload: Workload, left: Left) -> Workload:
    """Return the workload on a model of its shape that has been written."""
    folder = workload.folder / "model"
    if not (folder / "config.json").exists():
        in_new_process("write_weights", workload, limit=left(), folder=str(folder))
    return replace(workload, model=str(folder), shape=None)


def engine(bench: Bench, config: str) -> Run:
    """Time steps under `accelerate launch` with an accelerate configuration and one rank."""

    def run(left: Left) -> dict[str, Any]:
        workload = on_disk(bench.prepared(), left)
        name = config if workload.device == "cuda" else f"{config}_cpu"
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        launch += [str(ROOT / "accelerate_configs" / f"{name}.yaml"), "--num_processes", "1"]
        launch += ["--main_process_port", "0"]
        return bench.measured(workload, "rahf-loaded", launcher=launch, limit=left())

    return run


def own_tests(bench: Bench) -> Run:
    """Run the tests of the suite that need a GPU, on its tiny models."""

    def run(left: Left) -> dict[str, Any]:
        if bench.workload.device != "cuda":
            raise LeftOutError("there is no GPU")
        folders = [str(ROOT / "tests" / name) for name in ("models", "training")]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
        status, output, errors = run_alone([*command, *folders], dict(os.environ), left())
        if status:
            raise RuntimeError(f"{output}\n{errors}")
        return {"tests": output.splitlines()[-1]}

    return run
