"""Options of the table at the end of a run, and their checks.

Knows no model, no data and no file.
"""

from dataclasses import dataclass

from rahf.recipe.fields import Count, CountFromZero, option, raise_problems, value_problems
from rahf.recipe.judge_options import JudgeOptions


@dataclass(frozen=True)
class EvaluationOptions(JudgeOptions):
    """The table of base, teachers and policy at the end of a run."""

    prompts: str | None = option(
        None,
        "File of prompts to answer and judge; null: held-out prompts, as many as held_out_prompts.",
    )
    held_out_prompts: CountFromZero = option(
        8, "Number of held-out prompts to answer where `prompts` is null; 0: none."
    )
    unrelated_text: str | None = option(
        None,
        "File of unrelated texts, on which the loss per token is measured; null: not measured.",
    )
    unrelated_rows: Count = option(200, "Number of texts read from the start of that file.")
    max_new_tokens: Count = option(48, "Most tokens of an answer.")

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
