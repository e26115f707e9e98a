"""Options of what is measured: the table at the end of a run, and the comparison of methods.

Knows no model, no data and no file.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from rahf.recipe.combinations import comparison_problems
from rahf.recipe.fields import Count, Limits, Share, option, raise_problems, value_problems
from rahf.recipe.judge_options import JUDGE_HELP, JudgeOptions


@dataclass(frozen=True)
class EvaluationOptions(JudgeOptions):
    """The table of base, teachers and policy at the end of a run."""

    prompts: str | None = option(
        None, "File of prompts that are answered and judged; null: no answers."
    )
    unrelated_text: str | None = option(
        None,
        "File of texts from elsewhere, on which the loss per token is measured; null: not "
        "measured.",
    )
    unrelated_rows: Count = option(200, "Texts of that file that are read, from its start.")
    max_new_tokens: Count = option(48, "Tokens of an answer.")

    models: list[str] = option(
        ["base", "teachers", "policy"], "Rows of the table: any of base, teachers, policy."
    )

    def __post_init__(self):
        problems = value_problems(self, EvaluationOptions)
        raise_problems(problems or [*self.judge_problems(), *self._model_problems()])

    def _model_problems(self) -> list[str]:
        problems = [
            f"models: {name!r} is not one of base, teachers, policy"
            for name in self.models
            if name not in ("base", "teachers", "policy")
        ]
        if self.compares and "base" not in self.models:
            problems.append(
                f"models: {self.models} has no base, whose answers judge {self.judge!r} compares "
                "with: add base, or set a judge that scores"
            )
        return problems


ROW_KINDS = ("base", "urial", "sft", "dpo", "lorra", "scit", "dual", "dpo_shift", "direction")
"""What a row of a comparison can be; a name may go on after a dash: `dual-retain`."""


@dataclass(frozen=True)
class CompareOptions(JudgeOptions):
    """`rahf compare`: which methods stand side by side, and how each of them is tuned."""

    rows: dict[str, dict] = option(
        {name: {} for name in ROW_KINDS[:-1]},
        "The rows, {name: keys of the recipe that are its own}. A name begins with what the row "
        "is (base, urial, sft, dpo, lorra, scit, dual, dpo_shift, direction) and may go on: "
        "dual-retain. "
        "dpo also takes `beta`. Keys of the top level hold for the training of an sft row.",
    )
    trials: dict[str, list] = option(
        {},
        "Settings that are tried for a row on held-out training pairs, {name: [keys, keys, ...]}; "
        "every row that is tuned gets equally many. The best is trained with all seeds.",
    )
    seeds: list[int] = option([0, 1, 2], "Seeds of the trained rows.")
    strengths: list[float] = option(
        [0.5, 1.0, 1.5, 2.0],
        "Factors on a trained adapter: the points of its trade-off curve. 1 is the adapter itself.",
    )
    judge: str = option("lexicon", f"{JUDGE_HELP}.")
    repetition_limit: Annotated[float, Limits(least=0)] = option(
        1.0,
        "An answer with a larger share of repeated word triples counts as the base's own answer: "
        "language that goes round in circles is no change. 1: every answer counts.",
    )
    urial: str | None = option(
        None, "File of instruction and examples for rows of kind urial; null: ours."
    )
    cost: Literal["loss", "kl"] = option(
        "loss",
        "Loss of general ability, in nats per token of unrelated text. loss: the rise of the "
        "cross entropy. kl: divergence from the base.",
    )
    budget: Annotated[float, Limits(least=1e-6)] = option(
        0.05, "The cost at which trials and rows are compared, in nats per token."
    )
    validation_share: Share = option(
        0.2, "Share of the training prompts that is held out to choose among trials."
    )

    def __post_init__(self):
        problems = value_problems(self, CompareOptions)
        raise_problems(problems or [*comparison_problems(self, ROW_KINDS), *self.judge_problems()])
