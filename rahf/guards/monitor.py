"""Watch a training: how far fixed held-out answers move along directions, step by step.

A callback for the Trainer of transformers, TRL's trainers and ours. Its figures go to the trainer's
own log and trackers, and a limit ends the training.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rahf.artifacts import read_object, write_json
from rahf.data.prompts import Response, read_responses, response_of
from rahf.data.response_ids import tokenize_responses
from rahf.directions.vectors import Directions
from rahf.evaluation.intervals import Estimate, mean_estimate
from rahf.guards.checks import check_count, check_records, check_trainer, is_number
from rahf.guards.projections import Ids, check_projected, projections
from rahf.models.adapters import pad_id
from rahf.overrides import overrides

FILE_NAME = "directions_before.json"

logger = logging.getLogger(__name__)


class DirectionMonitor(TrainerCallback):
    """Logs per direction the mean movement of fixed answers against the model before training.

    `directions/NAME` is the mean over answers and layers, `directions/NAME/low` and `.../high` its
    95 % interval over answers, and `directions/NAME/layer_L` the mean in each layer. The unit is
    the direction itself: 1 is the mean difference that was fitted.

    Args:
        trainer: the trainer that it is added to, as `trainer.add_callback(DirectionMonitor(trainer,
            ...))`.
        directions: by name, as `{"tone": Directions.load("out/tone")}`.
        answers: a file of held-out prompts and responses as `rahf generate` writes it, or such
            records. They are fixed texts: give answers of the base, not of the training data.
        every: optimizer steps between two readings; None: as often as the trainer logs.
        stop_when: movement by name at which the training ends; below zero for movement in the
            opposite direction.
        batch_size: answers in one forward pass.

    Raises:
        ValueError: directions that do not fit the model, answers without tokens, or limits that
            name no direction.
    """

    def __init__(
        self,
        trainer: Trainer,
        directions: Mapping[str, Directions],
        answers: str | Path | Sequence[Mapping[str, Any]],
        *,
        every: int | None = None,
        stop_when: Mapping[str, float] | None = None,
        batch_size: int = 8,
    ):
        check_trainer(trainer)
        check_projected(_model_of(trainer), directions)
        check_limits(stop_when or {}, directions)
        check_count("every", 1 if every is None else every)
        check_count("batch_size", batch_size)
        self.history: list[dict[str, float]] = []
        self.stopped: str | None = None  # why the training was ended
        self._trainer, self._directions, self._batch_size = trainer, directions, batch_size
        self._every, self._limits = every, dict(stop_when or {})
        self._answers = ids_of(answers, _tokenizer_of(trainer))
        self._before: dict[str, Tensor] = {}

    @overrides(TrainerCallback)
    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Read the model before training, or what was read before an interruption.

        Raises:
            ValueError: limits that no reading would reach before the end of the training.
        """
        if self._limits and self._every is None and args.logging_strategy == "no":
            raise ValueError(
                "stop_when needs readings during the training, but logging_strategy is 'no': give "
                "`every`."
            )
        assert args.output_dir is not None  # transformers gives it a default
        path = Path(args.output_dir) / FILE_NAME
        if state.global_step:
            self._before = self._read_before(path)
            return
        self._before = self._read()
        if state.is_world_process_zero:
            values = {name: each.tolist() for name, each in self._before.items()}
            kept = read_object(path) if path.exists() else {}
            write_json(path, {**kept, self._identity(): values})

    def _read_before(self, path: Path) -> dict[str, Tensor]:
        """Return the readings of the model before training, for a training that resumes.

        Raises:
            ValueError: there are none of these directions and answers, or they are damaged.
        """
        stored = read_object(path) if path.exists() else {}
        if self._identity() not in stored:
            raise ValueError(
                f"{path} holds no reading of these directions and answers from before the "
                "training, which resumes: give those it began with, begin anew, or leave the "
                "monitor out."
            )
        shapes = {name: (len(d.layers), len(self._answers)) for name, d in self._directions.items()}
        try:
            values = stored[self._identity()].items()
            found = {name: np.array(each, dtype=float) for name, each in values}
        except (AttributeError, TypeError, ValueError):  # no object, or no numbers
            found = {}
        whole = all(np.isfinite(each).all() for each in found.values())
        if {name: each.shape for name, each in found.items()} != shapes or not whole:
            raise ValueError(f"{path} is damaged: begin the training anew.")
        return {name: torch.tensor(each, dtype=torch.float32) for name, each in found.items()}

    @overrides(TrainerCallback)
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Log the movement every so many steps, where the trainer logs, and at the last step."""
        due = control.should_log if self._every is None else state.global_step % self._every == 0
        if due or state.global_step >= state.max_steps:
            self._report(state, control)

    @overrides(TrainerCallback)
    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Log the movement where the trainer logs by epoch."""
        if self._every is None and control.should_log and not self._reported(state):
            self._report(state, control)

    def _reported(self, state: TrainerState) -> bool:
        return bool(self.history) and self.history[-1]["step"] == state.global_step

    def _report(self, state: TrainerState, control: TrainerControl) -> None:
        moved = {name: now - self._before[name] for name, now in self._read().items()}
        overall = {name: _mean_of(each) for name, each in moved.items()}
        figures = figures_of(moved, overall, self._directions)
        self.history.append({"step": state.global_step, **figures})
        # The base class's log: that of a subclass would write and clear its own averages here. And
        # a log clears the order to log, which is still the trainer's own.
        should_log = control.should_log
        Trainer.log(self._trainer, dict(figures))
        control.should_log = should_log
        for name, limit in self._limits.items():
            if reached(overall[name].mean, limit):
                self._stop(name, overall[name], limit, state, control)

    def _stop(
        self, name: str, moved: Estimate, limit: float, state: TrainerState, control: TrainerControl
    ) -> None:
        self.stopped = (
            f"the training was ended at step {state.global_step}: its answers moved by "
            f"{moved.mean:+.3f} [{moved.low:+.3f}, {moved.high:+.3f}] along {name!r}, beyond the "
            f"limit of {limit:+g} in stop_when."
        )
        logger.warning(self.stopped)
        control.should_training_stop = True

    def _read(self) -> dict[str, Tensor]:
        model, pad = _model_of(self._trainer), pad_id(_tokenizer_of(self._trainer))
        return projections(model, self._directions, self._answers, pad, self._batch_size)

    def _identity(self) -> str:
        vectors = {name: each.fingerprint() for name, each in sorted(self._directions.items())}
        text = json.dumps([vectors, self._answers])
        return hashlib.sha256(text.encode()).hexdigest()


def _model_of(trainer: Trainer) -> nn.Module:
    assert trainer.model is not None
    return trainer.model


def _tokenizer_of(trainer: Trainer) -> PreTrainedTokenizerBase:
    return cast(PreTrainedTokenizerBase, trainer.processing_class)


def _mean_of(moved: Tensor) -> Estimate:
    estimate = mean_estimate(moved.mean(0).tolist())
    assert estimate is not None  # there are answers
    return estimate


def figures_of(
    moved: Mapping[str, Tensor],
    overall: Mapping[str, Estimate],
    directions: Mapping[str, Directions],
) -> dict[str, float]:
    """Return the figures of one reading by their names in the log.

    Args:
        moved: movement by direction, [layers, answers].
        overall: its mean over answers and layers.
    """
    figures = {}
    for name, estimate in overall.items():
        figures[f"directions/{name}"] = estimate.mean
        figures[f"directions/{name}/low"] = estimate.low
        figures[f"directions/{name}/high"] = estimate.high
        for layer, value in zip(directions[name].layers, moved[name].mean(1).tolist(), strict=True):
            figures[f"directions/{name}/layer_{layer}"] = value
    return figures


def reached(moved: float, limit: float) -> bool:
    """Return whether the movement is as far as the limit, in the limit's direction."""
    return moved >= limit if limit > 0 else moved <= limit


def check_limits(limits: Mapping[str, float], directions: Mapping[str, Directions]) -> None:
    """Refuse limits that no movement could reach as meant.

    Raises:
        ValueError: a limit of no direction, of 0, or that is not a number.
    """
    if not isinstance(limits, Mapping):
        raise ValueError(f"stop_when: {limits!r} should be limits by name, as {{'tone': 0.5}}.")
    for name, limit in limits.items():
        if name not in directions:
            raise ValueError(
                f"stop_when names {name!r}, but the directions are {', '.join(directions)}."
            )
        if not is_number(limit) or limit == 0:
            raise ValueError(
                f"stop_when: {name}: {limit!r} should be a movement: above 0 along the direction, "
                "below 0 against it."
            )


def ids_of(answers: str | Path | Sequence[Mapping[str, Any]], tokenizer: Any) -> list[Ids]:
    """Return the ids of the answers' prompts and responses.

    Raises:
        ValueError: fewer than two answers, or one without a response token.
    """
    check_records("answers", answers, "{'prompt': ..., 'response': ...}")
    if isinstance(answers, str | Path):
        given: list[Response] = read_responses(answers)
    else:
        given = [response_of(record, f"answer {n}") for n, record in enumerate(answers, 1)]
    if len(given) < 2:
        raise ValueError(f"{len(given)} answers: an interval needs at least 2, about 30 are usual.")
    ids = tokenize_responses([a.messages for a in given], [a.text for a in given], tokenizer)
    empty = [number for number, (_, response) in enumerate(ids, 1) if not response]
    if empty:
        raise ValueError(f"answers {empty[:10]} have no response token: leave them out.")
    return ids
