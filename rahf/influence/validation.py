"""Is the estimate right: influence and its rivals against retraining and against small steps.

The linear datamodelling score (Park et al. 2023, arXiv 2303.14186) is the rank correlation, over
random parts of the pairs, of a query after a training on the part with what a ranking predicts: the
sum of the ranking's scores of the pairs that are kept. Knows trainings and scores.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rahf.evaluation.intervals import DRAWS, SEED, Estimate, mean_estimate
from rahf.influence.files import rivals_of
from rahf.influence.gradients import Part
from rahf.influence.inputs import Questions
from rahf.influence.queries import ask, values_of
from rahf.influence.records import rankings, spearman
from rahf.influence.retraining import retrain
from rahf.influence.run import POLICY_STAGE, Fitted, Influence, Settings, fit_stage, score_all
from rahf.influence.scores import pair_gradients
from rahf.influence.trained import Edit, Training, open_training
from rahf.models.adapters import pad_id
from rahf.report.progress import timed

SMALL = 0.05
"""Largest predicted change of a query in a finite difference: the step is a share of the one that
leaving a pair out makes."""


@dataclass(frozen=True)
class Retrainings:
    """Retrainings of one adapter, each asked the same queries."""

    training: Training
    questions: Questions
    folder: Path
    batch_size: int

    def run(self, edit: Edit, name: str, seed: int) -> Training:
        """Return the training repeated on edited pairs."""
        return retrain(self.training, edit, self.folder / f"{name}-{seed}", seed)

    def values(self, training: Training) -> Float[Tensor, " queries"]:
        """Return the queries at a trained adapter."""
        subject = open_training(training)
        how = (pad_id(subject.tokenizer), self.batch_size, self.questions.values)
        return values_of(subject.objective.model, self.questions.queries, *how)


def step_agreement(
    fitted: Fitted, influence: Influence, questions: Questions, pairs: int, batch_size: int
) -> dict[str, Any]:
    """Return how the direct changes agree with finite differences: the policy is moved by a small
    share of the step that leaving a pair out makes, and asked again.

    Returns:
        Correlation over the pairs with the largest changes and all queries, and the slope of the
        differences on what is predicted.
    """
    stage, objective = influence.stages[POLICY_STAGE], fitted.subject.objective
    how = (pad_id(fitted.subject.tokenizer), batch_size, questions.values)
    changes, real = stage.scores.changes, []
    places = changes.abs().sum(1).argsort(descending=True)[:pairs].tolist()
    for place in places:
        batch = objective.batch([place], whole=False)
        gradient = pair_gradients(objective, fitted.parts, batch)
        share = min(1.0, SMALL / float(changes[place].abs().max().clamp(min=1e-9)))
        step = share * fitted.curvature.solve(gradient)[0] / len(stage.rows)
        ends = []
        for sign in (1.0, -1.0):
            _move(fitted.parts, sign * step)
            ends.append(values_of(objective.model, questions.queries, *how))
            _move(fitted.parts, -sign * step)
        real.append((ends[0] - ends[1]) / (2 * share))
    measured, predicted = torch.stack(real).flatten(), changes[places].flatten()
    correlation = float(torch.corrcoef(torch.stack([measured, predicted]))[0, 1])
    slope = float((measured @ predicted) / predicted.square().sum())
    return {"correlation": correlation, "slope": slope, "pairs": len(places)}


def _move(parts: Sequence[Part], step: Float[Tensor, " parameters"]) -> None:
    for part in parts:
        part.module.weight.data += part.matrices(step.unsqueeze(0))[0]


def with_random(rivals: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the rankings with a random one beside them."""
    generator = torch.Generator().manual_seed(SEED)
    return rivals | {"random": torch.randn(rivals["influence"].shape, generator=generator)}


def datamodelling_scores(
    retrainings: Retrainings, rows: Sequence[int], rivals: dict[str, Tensor], parts: int
) -> dict[str, dict[str, float] | None]:
    """Return the linear datamodelling score of each ranking: the mean over the queries, with its
    95 % interval.

    Args:
        rows: `row` of each pair, in the order of the rankings.
        rivals: rankings, [pairs, queries]; the larger, the more a pair supports the query.
        parts: random halves of the pairs that are trained on.
    """
    kept, values = [], []
    seed = retrainings.training.recipe.training_value("seed")  # nothing changes but the pairs
    for number in timed(range(parts), "retrainings"):
        order = np.random.default_rng((SEED, number)).permutation(len(rows))
        here = np.isin(np.arange(len(rows)), order[: len(rows) // 2])
        left = frozenset(rows[place] for place in np.flatnonzero(~here))
        values.append(retrainings.values(retrainings.run(Edit(left), f"half-{number}", seed)))
        kept.append(torch.from_numpy(here))
    return lds(torch.stack(values), torch.stack(kept), rivals)


def lds(
    values: Float[Tensor, "parts queries"],
    kept: Bool[Tensor, "parts pairs"],
    rivals: dict[str, Float[Tensor, "pairs queries"]],
) -> dict[str, dict[str, float] | None]:
    """Return the rank correlation of measured values with the support that was kept."""
    found = {}
    for name, ranking in rivals.items():
        predicted = kept.float() @ ranking.nan_to_num()
        columns = zip(values.T, predicted.T, strict=True)
        known = [each for each in (spearman(*column) for column in columns) if each is not None]
        estimate = mean_estimate(known) if known else None
        found[name] = estimate and estimate.as_dict()
    return found


def leave_out(
    retrainings: Retrainings, influence: Influence, count: int, seeds: Iterable[int]
) -> dict[str, dict[str, Any]]:
    """Return predicted and measured change of the queries' mean without their strongest
    supporters, their strongest opponents, and random pairs.

    The measured change is the difference to a retraining on all pairs with the same seed.
    """
    mean, seeds = influence.total.mean(1), list(seeds)
    order = mean.argsort().tolist()
    drawn = np.random.default_rng(SEED).permutation(len(order))[:count].tolist()
    arms = {"supporters": order[:count], "opponents": order[-count:], "random": drawn}
    whole = {s: retrainings.values(retrainings.run(Edit(), "all", s)).mean() for s in seeds}
    found = {}
    for name, places in timed(arms.items(), "retrainings"):
        edit = Edit(frozenset(influence.rows[place] for place in places))
        again = [retrainings.values(retrainings.run(edit, f"without-{name}", s)) for s in seeds]
        real = [float(each.mean() - whole[s]) for each, s in zip(again, seeds, strict=True)]
        estimate = mean_estimate(real).as_dict()
        found[name] = {"predicted": float(mean[places].sum()), "measured": estimate}
    return found


def auc(scores: Float[np.ndarray, " pairs"], positive: Bool[np.ndarray, " pairs"]) -> Estimate:
    """Return the probability that a positive pair has a larger score than another one, ties
    counting a half, with a 95 % bootstrap interval over the pairs.
    """
    generator, drawn = np.random.default_rng(SEED), []
    for _ in range(DRAWS // 4):
        some = generator.integers(len(scores), size=len(scores))
        if 0 < positive[some].sum() < len(some):
            drawn.append(_auc(scores[some], positive[some]))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(_auc(scores, positive), float(low), float(high))


def _auc(scores: np.ndarray, positive: np.ndarray) -> float:
    ordered, others = np.sort(scores[~positive]), scores[positive]
    below = np.searchsorted(ordered, others, "left") + np.searchsorted(ordered, others, "right")
    return float(below.mean() / 2 / len(ordered))


def flipped_rows(rows: Sequence[int], share: float, seed: int) -> frozenset[int]:
    """Return the `row` of the pairs whose sides are flipped."""
    count = max(1, round(share * len(rows)))
    order = np.random.default_rng((SEED, seed)).permutation(len(rows))[:count]
    return frozenset(rows[place] for place in order)


def flip_recovery(
    retrainings: Retrainings, rows: Sequence[int], share: float, seed: int, settings: Settings
) -> dict[str, Any]:
    """Return how well rankings find pairs whose sides traded places in a retraining: the AUC of
    what opposes the mean held-out margin, beside that of the pair's own margin.
    """
    flipped = flipped_rows(rows, share, seed)
    again = retrainings.run(Edit(flipped=flipped), "flipped", seed)
    its = settings._replace(factors=again.folder / "influence")
    fitted = fit_stage(again, POLICY_STAGE, its)
    questions, pad = retrainings.questions, pad_id(fitted.subject.tokenizer)
    how = (questions.queries, pad, its.batch_size, questions.values)
    asked = ask(fitted.subject.objective.model, fitted.parts, *how)
    influence = score_all(fitted, asked, its)
    found = rankings(influence, rivals_of(fitted, influence, questions.queries, its, None))
    positive = np.isin(influence.rows, list(flipped))
    aucs = {
        name: auc(-found[name].nan_to_num().mean(1).numpy(), positive).as_dict()
        for name in ("influence", "gradient dot", "margin", "IRM")
    }
    return {"flipped": len(flipped), "pairs": len(positive), "auc": aucs}
