"""Options of the target: how far states are moved, in which layers, and at which tokens.

Knows no model and no file.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from rahf.recipe.fields import Count, Limits, OrAny, option
from rahf.recipe.layers import AUTO, check_layers
from rahf.recipe.methods import method_names

_LENGTH = ", ".join(method_names(lambda method: method.random_target))
_NO_ALPHA = ", ".join(method_names(lambda method: method.pushes_away and not method.random_target))


@dataclass
class TargetOptions:
    """How far hidden states are moved, in which layers, and at which tokens."""

    alpha: Annotated[float, OrAny(Literal["auto"])] = option(
        2.0,
        "Strength: the target is reference + alpha * shift. Negative: away from the preferred "
        f"side. auto: solved for kl_budget before the alignment. {_LENGTH}: the length of the "
        f"random vector that rejected responses are pushed towards. Not read by {_NO_ALPHA}.",
    )
    kl_budget: Annotated[float, Limits(least=1e-6)] = option(
        0.5,
        "Budget that alpha: auto is solved for: the policy's KL divergence from the base on "
        "neutral text, in nats per token. A policy above the budget is scaled back to it.",
    )
    target_layers: Annotated[str, OrAny(int | float | list)] = option(
        "0.5-0.8",
        "Decoder blocks whose output is aligned, counted from 0: block numbers (12), fractions of "
        "the depth (0.5), ranges of either with both ends ('10-20', '10-20:2', '0.3-0.7', "
        "'0.3-0.6:0.1'), a list of these, or 'a,b,c'. auto: the window that "
        "raises the margin of held-out pairs the most, at equal kl_budget.",
    )
    positions: Literal["response", "response_and_tail"] = option(
        "response_and_tail",
        "States that are aligned. response: those of the response tokens (published). "
        "response_and_tail: the response and the end of the prompt.",
    )
    tail_tokens: Count = option(
        2, "Number of tokens at the end of the prompt that `response_and_tail` adds."
    )
    max_response_tokens: Count = option(
        64,
        "Number of tokens of a response, from its start, that are aligned; terms on predictions "
        "read all.",
    )
    distance: Literal["l2", "squared_l2"] = option(
        "l2", "Distance of a state to its target: the 2-norm, or its square."
    )
    layer_scale: Literal["none", "rms", "shift"] = option(
        "shift",
        "Divisor of each layer's error. rms: the RMS norm of the reference's states. shift: that "
        "of the shift times alpha, so that settings carry over between models; not for methods "
        "without a shift.",
    )
    packing: bool = option(
        True,
        "Put the rows of a batch one after the other, without padding, where the model's attention "
        "is sdpa; false: pad them.",
    )
    target_cache: str | None = option(
        None,
        "Folder that keeps the states of the frozen views: they are computed once, and read in "
        "later epochs and by later trainings on the same rows, whatever their alpha, weights, "
        "rate or seed. Beside a KL or DPO term it keeps those of the retained texts only. A "
        "training that needs more than the disk has free is refused. null: computed in every step.",
    )

    @property
    def chooses(self) -> bool:
        """Return whether layers or strength are left to the data."""
        return AUTO in (self.alpha, self.target_layers)


def target_problems(options: TargetOptions) -> list[str]:
    """Return the problems of strength, layers and the folder of the cache."""
    problems = []
    if options.alpha == 0:
        problems.append("alpha: 0 leaves every state where it is: give another number")
    if options.target_cache is not None and not options.target_cache.strip():
        problems.append("target_cache: is empty: give a folder, or omit it")
    return problems + ([] if options.target_layers == AUTO else check_layers(options.target_layers))
