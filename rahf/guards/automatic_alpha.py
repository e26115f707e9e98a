"""The strength of a prevention, chosen while the training runs: a trait's held-out margin returns
to the value that it had before the training, and not beyond.

The margin m is the log-probability per token of the trait's side over the other side, mean over
held-out pairs; m_0 is its value before the training, and g what one unit of the direction adds.

    e_k = (m_k - m_0) / g                   how far the model leaked, in units of the direction
    I_k = I_(k-1) + INTEGRAL e_k            kept within [LEAST, MOST]
    alpha = I_k + PROPORTIONAL e_k          kept within [LEAST, MOST]

The only fixed point is e = 0: the integral moves as long as the margin is off. A training that
covers a share f of the way to what its data wants (d units of the direction) between two readings
is e <- e + f (d - alpha - e). By Jury's conditions the loop is stable for 2 (1 + P) f + I f < 4, so
for every f up to 1 with P = I = 1/2. Then alpha ends at d. Knows margins; knows no hook.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rahf.data.sources import load_pairs
from rahf.data.tokenization import tokenize_pairs
from rahf.directions.steering import steer
from rahf.directions.vectors import Directions
from rahf.evaluation.intervals import mean_estimate
from rahf.guards.checks import check_count, check_records, check_trainer
from rahf.guards.projections import evaluation_mode
from rahf.models.adapters import pad_id
from rahf.models.likelihood import likelihood, rows_for
from rahf.overrides import overrides

AUTO = "auto"
START, LEAST, MOST = 2.0, 0.0, 4.0
"""A start at the middle: what leaks in the first steps, at the highest rates, is the hardest to get
back."""
PROPORTIONAL = INTEGRAL = 0.5
BATCH = 8  # pairs in one forward pass


class Controller:
    """The law above.

    Args:
        before: margin before the training.
        gain: what one unit of the direction adds to the margin.
    """

    def __init__(self, before: float, gain: float):
        self.before, self.gain, self.alpha = before, gain, START
        self._integral = START

    def update(self, margin: float) -> float:
        """Return alpha after a reading of the margin."""
        leak = (margin - self.before) / self.gain
        self._integral = min(max(self._integral + INTEGRAL * leak, LEAST), MOST)
        self.alpha = min(max(self._integral + PROPORTIONAL * leak, LEAST), MOST)
        return self.alpha


class AlphaFromMargin(TrainerCallback):
    """Reads the margin every so many optimizer steps, sets alpha, and logs both.

    `prevent/alpha`, `prevent/margin` and `prevent/margin_before` go to the trainer's log.

    Args:
        directions: the increments that prevention adds.
        pairs: held-out pairs, the trait's side as `chosen`: a file, or records.
        everywhere: whether the direction is added at all positions.
        every: optimizer steps between two readings.
        change: is given every new alpha.

    Raises:
        ValueError: no trainer or no pairs; pairs whose margin the direction does not raise.
    """

    def __init__(
        self,
        trainer: Trainer | None,
        directions: Directions,
        pairs: str | Path | Sequence[Mapping[str, Any]] | None,
        *,
        everywhere: bool,
        every: int,
        change: Callable[[float], None],
    ):
        check_given(trainer, pairs)
        assert trainer is not None
        assert pairs is not None
        check_count("every", every)
        self._trainer, self._every, self._change = trainer, every, change
        tokenizer = cast(PreTrainedTokenizerBase, trainer.processing_class)
        self._pairs, self._pad = rows_of(pairs, tokenizer), pad_id(tokenizer)
        before = self._margins()
        with_trait = self._margins(directions, everywhere)
        check_gain(with_trait - before)
        self._controller = Controller(before.mean().item(), (with_trait - before).mean().item())
        change(START)

    @overrides(TrainerCallback)
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the margin and set alpha, when it is time and at the last step."""
        if state.global_step % self._every and state.global_step < state.max_steps:
            return
        margin, used = self._margins().mean().item(), self._controller.alpha
        if state.global_step < state.max_steps:
            self._change(self._controller.update(margin))
        figures = {"alpha": used, "margin": margin, "margin_before": self._controller.before}
        should_log = control.should_log  # which a log clears
        Trainer.log(self._trainer, {f"prevent/{name}": value for name, value in figures.items()})
        control.should_log = should_log

    def _margins(
        self, directions: Directions | None = None, everywhere: bool = False
    ) -> Float[Tensor, " pairs"]:
        model = cast(nn.Module, self._trainer.model)
        return trait_margins(model, self._pairs, self._pad, directions, everywhere=everywhere)


@torch.no_grad()
def trait_margins(
    model: nn.Module,
    pairs: Dataset,
    pad_token_id: int,
    added: Directions | None = None,
    *,
    everywhere: bool = False,
) -> Float[Tensor, " pairs"]:
    """Return the log-probability per token of chosen minus that of rejected, in nats.

    Args:
        added: directions that are added while the model reads.
        everywhere: at every position; otherwise from the last of the prompt.
    """
    found = []
    with evaluation_mode(model):
        for start in range(0, len(pairs), BATCH):
            batch = pairs.select(range(start, min(start + BATCH, len(pairs))))
            prompts = [row["prompt_ids"] for row in batch for _ in range(2)]
            responses = [row[side] for row in batch for side in ("chosen_ids", "rejected_ids")]
            rows = rows_for(model, prompts, responses, pad_token_id)
            starts = None if everywhere else [max(len(prompt) - 1, 0) for prompt in prompts]
            with steer(model, () if added is None else added, 1.0, start=starts):
                means = likelihood(model, rows).means()
            found.append((means[0::2] - means[1::2]).double().cpu())
    return torch.cat(found)


def rows_of(pairs: str | Path | Sequence[Mapping[str, Any]], tokenizer: Any) -> Dataset:
    """Return tokenised pairs of a file or of records.

    Raises:
        ValueError: fewer than two of them can be used.
    """
    given = load_pairs(pairs) if isinstance(pairs, str | Path) else Dataset.from_list([*pairs])
    rows, _ = tokenize_pairs(given, tokenizer)
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} pairs: alpha='auto' needs at least 2, some 24 are usual.")
    return rows


def check_given(trainer: Trainer | None, pairs: Any) -> None:
    """Refuse an automatic alpha without what it is chosen from.

    Raises:
        ValueError: names what is missing.
    """
    if trainer is None or pairs is None:
        raise ValueError(
            "alpha='auto' reads a margin while the training runs: give trainer=, and pairs= of the "
            "trait, its side as `chosen`, that are not trained on."
        )
    check_trainer(trainer)
    check_records("pairs", pairs, "{'prompt': ..., 'chosen': ..., 'rejected': ...}")


def check_gain(gains: Float[Tensor, " pairs"]) -> None:
    """Refuse pairs by which the controller could not tell the trait.

    Raises:
        ValueError: adding the direction does not raise their margin: the 95 % interval holds 0.
    """
    estimate = mean_estimate(gains.tolist())
    assert estimate is not None  # there are two pairs at least
    mean, low, high = estimate
    if low <= 0:
        raise ValueError(
            f"adding the direction changes the margin of the pairs by {mean:+.3f} [{low:+.3f}, "
            f"{high:+.3f}] nats per token, which does not exclude 0: give more pairs, with "
            "the trait's side as `chosen`, or a direction of this trait."
        )
