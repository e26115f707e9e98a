"""Is it better without them: the same training without, or with turned, pairs that rankings choose.

Half of the held-out pairs decide which pairs are the worst; the accuracy is measured on the other
half. All arms change equally many pairs. Knows trainings and scores; writes no data of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

from rahf.artifacts import write_lines
from rahf.data.pairs import whole_pair
from rahf.evaluation.intervals import SEED, mean_estimate
from rahf.influence.retraining import retrain
from rahf.influence.trained import Edit, Training, open_training
from rahf.models.adapters import frozen_pass, pad_id
from rahf.models.likelihood import preference_margins, preferred
from rahf.pipeline.inputs import load_split
from rahf.report.progress import timed

ALL = "all pairs"


class Arm(NamedTuple):
    """What one retraining changes."""

    name: str
    edit: Edit


def halves(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Return every second held-out pair, to decide with, and the others, to measure with.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(rows) < 2:
        raise ValueError("one held-out pair cannot both choose pairs and measure: give more pairs.")
    return rows.select(range(0, len(rows), 2)), rows.select(range(1, len(rows), 2))


def arms_of(
    rows: Sequence[int], found: Mapping[str, Float[Tensor, "pairs queries"]], count: int
) -> list[Arm]:
    """Return the arms, each with `count` changed pairs.

    Args:
        found: rankings of the pairs; the larger, the more a pair supports the held-out margins.
    """
    means = {name: ranking.nan_to_num().mean(1) for name, ranking in found.items()}
    order = means["influence"].argsort().tolist()  # the worst first
    drawn = np.random.default_rng(SEED).permutation(len(rows))[:count].tolist()
    ends = order[: count - count // 2] + order[len(order) - count // 2 :]
    dropped = {"drop worst": order[:count], "keep middle": ends}
    dropped["drop random"] = drawn
    dropped["drop by margin"] = means["margin"].argsort()[:count].tolist()
    rivals = [means[name] for name in ("LossDiff", "IRM") if name in means]
    name = "keep middle of LossDiff-IRM" if len(rivals) == 2 else "keep middle of IRM"
    away = sum((_ranks(each) - (len(rows) - 1) / 2).abs() for each in rivals)
    dropped[name] = away.argsort(descending=True)[:count].tolist()
    arms = [Arm(ALL, Edit())]
    for name, places in dropped.items():
        arms.append(Arm(name, Edit(dropped=frozenset(rows[place] for place in places))))
    arms.append(Arm("flip worst", Edit(flipped=arms[1].edit.dropped)))
    return arms


def _ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def compare_arms(
    training: Training,
    arms: Sequence[Arm],
    held_out: Dataset,
    seeds: Sequence[int],
    folder: Path,
    batch_size: int,
) -> dict[str, dict[str, Any]]:
    """Return the held-out accuracy of each arm, and its difference to all pairs with a 95 %
    interval over the held-out pairs, each the mean over the seeds.
    """
    right = {}
    for number, arm in enumerate(timed(arms, "retrainings")):
        runs = [
            _right(
                retrain(training, arm.edit, folder / f"{number}-{seed}", seed), held_out, batch_size
            )
            for seed in seeds
        ]
        right[arm.name] = torch.stack(runs).mean(0)
    found = {}
    for arm in arms:
        changed = sorted(arm.edit.dropped | arm.edit.flipped)
        accuracy = mean_estimate(right[arm.name].tolist(), 0.0, 1.0).as_dict()
        gained = mean_estimate((right[arm.name] - right[ALL]).tolist()).as_dict()
        found[arm.name] = {"accuracy": accuracy, "gained": gained, "rows": changed}
    return found


def _right(training: Training, held_out: Dataset, batch_size: int) -> Float[Tensor, " pairs"]:
    subject = open_training(training)
    model = subject.objective.model
    with frozen_pass(model, "default"):
        margins = preference_margins(model, held_out, pad_id(subject.tokenizer), batch_size)
    return preferred(margins)


def write_cleaned(training: Training, edit: Edit, path: Path) -> int:
    """Write the training's pairs without the dropped ones, the flipped ones turned; return how
    many they are.
    """
    records = list(_cleaned(training, edit))
    write_lines(path, records)
    return len(records)


def _cleaned(training: Training, edit: Edit) -> Iterator[dict[str, Any]]:
    recipe = training.recipe
    for row in load_split(recipe, recipe.data.dataset_train_split):
        if row["dropped"] is None and row["row"] not in edit.dropped:
            pair = whole_pair(row)
            sides = [pair.chosen, pair.rejected]
            if row["row"] in edit.flipped:
                sides.reverse()
            yield {"prompt": pair.prompt, "chosen": [sides[0]], "rejected": [sides[1]]}
