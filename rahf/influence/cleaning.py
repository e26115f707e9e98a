"""Is it better without them: the same training with pairs dropped or flipped
that rankings choose.

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
        raise ValueError("at least two held-out pairs are needed: half choose, half measure.")
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
    # Kept is what lies in the middle of both rankings (arXiv 2510.13212).
    away = torch.stack([(_ranks(each) - (len(rows) - 1) / 2).abs() for each in rivals]).amax(0)
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
    """Return the held-out accuracy and margin (nats a token) of each arm, and their differences to
    all pairs, with 95 % intervals over the held-out pairs; each is the mean over the seeds.
    """
    margins, right = {}, {}  # of each arm, [seeds, pairs]
    for arm in timed(arms, "retrainings"):
        name = arm.name.replace(" ", "-")
        again = [retrain(training, arm.edit, folder / f"{name}-{seed}", seed) for seed in seeds]
        measured = [_margins(each, held_out, batch_size) for each in again]
        margins[arm.name] = torch.stack(measured)
        right[arm.name] = torch.stack([preferred(each) for each in measured])
    shares, means = ({name: x.mean(0) for name, x in each.items()} for each in (right, margins))
    found = {}
    for arm in arms:
        found[arm.name] = {
            "rows": sorted(arm.edit.dropped | arm.edit.flipped),
            "accuracy": mean_estimate(shares[arm.name].tolist(), 0.0, 1.0).as_dict(),
            "gained": mean_estimate((shares[arm.name] - shares[ALL]).tolist()).as_dict(),
            "margin": mean_estimate(means[arm.name].tolist()).as_dict(),
            "margin_gained": mean_estimate((means[arm.name] - means[ALL]).tolist()).as_dict(),
            "by_seed": {
                "accuracy": right[arm.name].mean(1).tolist(),
                "margin": margins[arm.name].mean(1).tolist(),
            },
        }
    return found


def _margins(training: Training, held_out: Dataset, batch_size: int) -> Float[Tensor, " pairs"]:
    subject = open_training(training)
    model = subject.objective.model
    with frozen_pass(model, "default"):
        return preference_margins(model, held_out, pad_id(subject.tokenizer), batch_size)


def write_cleaned(training: Training, edit: Edit, path: Path) -> int:
    """Write the training's pairs without the dropped ones, the flipped ones exchanged; return how
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
