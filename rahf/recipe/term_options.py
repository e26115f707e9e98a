"""Options of the terms of the loss: their weights, and the texts that they read.

Knows no model and no file.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from rahf.recipe.fields import CountFromZero, Limits, Weight, option
from rahf.recipe.methods import method_names

_PUSHING = ", ".join(method_names(lambda method: method.pushes_away))


@dataclass
class TermOptions:
    """The terms of the loss: their weights, and the texts that they read."""

    align_weight: Weight = option(
        1.0,
        "Weight of the distance of responses to their target; 0 shows what the other terms do "
        "without it.",
    )
    retain_weight: Weight = option(
        0.5, "Weight of the retain term: other text, whose target is the reference."
    )
    retain_dataset_name: str | None = option(
        None, "File with the texts of the retain term; null: they are sampled from the model."
    )
    retain_rows: CountFromZero = option(64, "Number of texts of the retain term.")
    retain_tokens: Annotated[int, Limits(least=2)] = option(
        64, "Number of tokens of each text of the retain term."
    )
    kl_weight: Weight = option(
        0.0, "Weight of the KL divergence of the policy's predictions from the reference's."
    )
    kl_rows: Literal["responses", "retain"] = option(
        "responses", "Rows of the KL term: the aligned responses, or the texts of the retain term."
    )
    sft_weight: Weight = option(0.0, "Weight of the cross entropy on chosen responses.")
    dpo_weight: Weight = option(
        0.0,
        "Weight of the DPO loss of the aligned responses against the reference; needs "
        "pairs_together: true.",
    )
    dpo_beta: Annotated[float, Limits(least=1e-6)] = option(
        0.1, "DPO's beta of the DPO term: the larger, the closer the policy stays to the reference."
    )
    protect_weight: Weight = option(
        1.0,
        "protect: weight of the squared movement along the protected directions; 0 only removes "
        "them from the shift.",
    )
    rejected_weight: Weight = option(
        1.0, f"{_PUSHING}: weight of the term that pushes rejected responses away."
    )
    chosen_weight: Weight = option(
        0.0, f"{_PUSHING}: weight of the distance of chosen responses to the reference."
    )
    similarity_weight: Weight = option(
        0.0,
        f"{_PUSHING}: weight of 1 - cosine between the rejected responses of a batch, each at its "
        "first aligned state.",
    )
    weights_over_time: Literal["constant", "crossing"] = option(
        "constant",
        "crossing: over the training the weight of rejected responses falls to a half, those of "
        f"chosen responses and retained texts rise from 0 to a half ({_PUSHING}).",
    )

    @property
    def compares_predictions(self) -> bool:
        """Return whether a term compares the policy's predictions with the reference's."""
        return bool(self.kl_weight or self.dpo_weight)

    @property
    def compares_retained(self) -> bool:
        """Return whether a term compares predictions on the texts of the retain term."""
        return bool(self.kl_weight) and self.kl_rows == "retain"

    @property
    def reads_retained(self) -> bool:
        """Return whether any term reads texts of the retain term."""
        return bool(self.retain_weight) or self.compares_retained


def term_problems(options: TermOptions, neutral: bool) -> list[str]:
    """Return the problems of the texts of the retain term.

    Args:
        neutral: whether the choice of alpha or layers reads these texts, too.
    """
    uses = {
        f"retain_weight: {options.retain_weight}": options.retain_weight > 0,
        "kl_rows: retain": options.compares_retained,
    }
    problems = [
        f"{use} needs texts: set retain_rows above 0"
        for use, used in uses.items()
        if used and not options.retain_rows
    ]
    if options.retain_dataset_name is not None and not (options.reads_retained or neutral):
        problems.append(
            "retain_dataset_name: read by no term: set retain_weight above 0, or kl_weight above 0 "
            "with kl_rows: retain"
        )
    return problems
