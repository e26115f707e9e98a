"""Fit the curvature of an adapter's training and of its teachers', and score their pairs.

Each stage of a training is attributed by itself; a pair's total is the sum over the stages that it
took part in: the policy directly, and each teacher through the targets that it gave the policy.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rahf.influence.curvature import Curvature, CurvatureName, fit_curvature
from rahf.influence.factors import FIT_PAIRS, check_key
from rahf.influence.formula import DAMPING
from rahf.influence.gradients import Part, lora_parts, parameter_count
from rahf.influence.length import floor_of
from rahf.influence.queries import Asked
from rahf.influence.scores import Detail, Scores, detail_of, score_pairs
from rahf.influence.through import teacher_queries
from rahf.influence.trained import (
    Subject,
    Training,
    open_training,
    teachers_given,
    teachers_trained,
)

POLICY_STAGE = "policy"

COARSE = "bf16: matrices were multiplied in bfloat16, so that scores are coarser"


class Settings(NamedTuple):
    """How influence is computed."""

    curvature: CurvatureName = "ekfac"
    factors: Path = Path("influence")  # folder, with one for each stage
    batch_size: int = 8  # pairs at once
    damping: float = DAMPING
    through: bool = True  # the teachers too
    fit_pairs: int = FIT_PAIRS  # that the factors of EK-FAC are fitted to, at most
    at_minimum: bool = False  # leave the length of the training out
    bf16: bool = False  # multiply in bfloat16 when pairs are read


class Fitted(NamedTuple):
    """A stage whose curvature is known."""

    subject: Subject
    parts: tuple[Part, ...]
    curvature: Curvature


class Stage(NamedTuple):
    """What the pairs of one stage did to the queries."""

    rows: list[int]  # `row` of each pair
    scores: Scores
    solved: Float[Tensor, "queries parameters"]
    notes: list[str]


class Influence(NamedTuple):
    """What all pairs did to the queries."""

    rows: list[int]  # `row` of every pair of any stage
    stages: dict[str, Stage]  # the policy, then its teachers
    total: Float[Tensor, "pairs queries"]  # sum over the stages, in the order of `rows`

    def of_stage(self, name: str) -> Float[Tensor, "pairs queries"]:
        """Return the changes through one stage in the order of `rows`; 0 without a part in it."""
        return _spread(self.rows, self.stages[name])


def fit_stage(training: Training, name: str, settings: Settings) -> Fitted:
    """Load a stage and fit its curvature, unless its factors are kept."""
    subject = open_training(training)
    objective = replace(subject.objective, bf16=settings.bf16)
    subject = subject._replace(objective=objective)
    parts, folder = lora_parts(subject.objective.model), settings.factors / name
    check_key(folder, subject)
    floor = 0.0 if settings.at_minimum else floor_of(training, parameter_count(parts))
    how = (folder, settings.batch_size, settings.damping, settings.fit_pairs, floor)
    return Fitted(subject, parts, fit_curvature(settings.curvature, objective, parts, *how))


def fit_all(training: Training, settings: Settings) -> list[str]:
    """Fit the curvature of a training and of its teachers; return the names of the stages."""
    stages = [POLICY_STAGE]
    fit_stage(training, POLICY_STAGE, settings)
    if settings.through:
        for name, teacher in teachers_trained(training).items():
            fit_stage(teacher, name, settings)
            stages.append(name)
    return stages


def score_all(fitted: Fitted, asked: Asked, settings: Settings) -> Influence:
    """Return what the pairs of every stage did to the queries.

    Args:
        fitted: the adapter.
        asked: the queries at it.

    Raises:
        ValueError: a score is not finite.
    """
    solved = fitted.curvature.solve(asked.gradients)
    stages = {POLICY_STAGE: _score(fitted, solved, asked.gradients, settings)}
    training = fitted.subject.training
    teachers = teachers_trained(training) if settings.through else {}
    for name, folder in teachers_given(training).items() if settings.through else ():
        stages[POLICY_STAGE].notes.append(
            f"the teacher {name}, {folder}, was given, so that no pair of this training has "
            "trained it: nothing goes through it"
        )
    if teachers:
        size = settings.batch_size
        towards = teacher_queries(fitted.subject, fitted.parts, solved, teachers, size)
        for name, its_training in teachers.items():
            teacher = fit_stage(its_training, name, settings)
            asked_there = towards[name].detach()
            its = teacher.curvature.solve(asked_there)
            stages[name] = _score(teacher, its, asked_there, settings)
    rows = sorted({row for stage in stages.values() for row in stage.rows})
    total = sum(_spread(rows, stage) for stage in stages.values())
    return Influence(rows, stages, total)


def _score(fitted: Fitted, solved: Tensor, asked: Tensor, settings: Settings) -> Stage:
    subject, curvature = fitted.subject, fitted.curvature
    _check_finite(settings, solved)
    scores = score_pairs(
        subject.objective,
        fitted.parts,
        solved,
        asked,
        curvature.solve_pairs,
        settings.batch_size,
    )
    _check_finite(settings, scores.changes, scores.products, scores.self_influence)
    notes = [*curvature.notes, *([COARSE] if subject.objective.bf16 else [])]
    return Stage(subject.rows["row"][:], scores, solved, notes)


def _check_finite(settings: Settings, *scores: Tensor) -> None:
    if not all(each.isfinite().all() for each in scores):
        raise ValueError(
            f"the scores are not finite with --curvature {settings.curvature} and --damping "
            f"{settings.damping}: give a larger --damping, such as {DAMPING}."
        )


def _spread(rows: Sequence[int], stage: Stage) -> Float[Tensor, "pairs queries"]:
    place_of = {row: place for place, row in enumerate(rows)}
    found = torch.zeros(len(rows), stage.scores.changes.shape[1])
    found[[place_of[row] for row in stage.rows]] = stage.scores.changes
    return found


def details(fitted: Fitted, stage: Stage, query: int, rows: Sequence[int]) -> dict[int, Detail]:
    """Return the changes of a query by pairs of a stage, by side, layer and token."""
    place_of = {row: place for place, row in enumerate(stage.rows)}
    objective, parts, solved = fitted.subject.objective, fitted.parts, stage.solved[query]
    return {
        row: detail_of(objective, parts, solved, place_of[row]) for row in rows if row in place_of
    }
