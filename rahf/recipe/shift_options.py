"""Options of the shift: the method, its views and teachers, and the responses that are read.

Knows no model and no file.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from rahf.recipe.fields import Count, Limits, Share, option, raise_problems, value_problems
from rahf.recipe.methods import (
    ALL_TEACHERS,
    DEFAULT_INSTRUCTIONS,
    DEFAULT_METHOD,
    METHODS,
    Method,
    method_names,
)

References = Literal[
    tuple(dict.fromkeys(name for method in METHODS.values() for name in method.references))
]

_SHIFTED = ", ".join(method_names(lambda method: method.contrasts_views))
_INSTRUCTED = ", ".join(method_names(lambda method: method.instructed))


@dataclass
class ShiftOptions:
    """Where the shift comes from, and the responses that it is read from."""

    method: Literal[tuple(METHODS)] = option(
        DEFAULT_METHOD,
        "Where the shift comes from. "
        + "; ".join(f"{name}: {method.sentence}" for name, method in METHODS.items())
        + ". The defaults of other keys depend on it (see Defaults by method).",
    )
    reference: References = option(
        "base",
        "Model whose hidden states are moved, and from which the policy starts: base, or a "
        "teacher of the method.",
    )
    response_source: Literal["chosen", "rejected", "both", "random"] = option(
        "both",
        "Responses of a pair whose states are aligned; random: one of the two, drawn in every "
        "epoch.",
    )
    pairs_together: bool = option(
        False,
        "Put both responses of a pair into one batch, where packed rows share their prompt; needs "
        "response_source: both and an even batch size.",
    )
    shift: Literal["token", "mean"] = option(
        "mean",
        "mean: one vector per layer, fitted once from the views. token: every token has its own "
        f"shift (published). Read by {_SHIFTED}.",
    )
    mean_responses: Count = option(
        1024,
        "Number of responses, drawn once, that shift: mean is fitted on; all of them where there "
        "are fewer.",
    )
    directions: str | None = option(
        None,
        "Path of stored directions; required by method: direction, and read by no other method.",
    )
    protect: list[str] = option(
        [],
        "Directions that must not move: folders of stored directions, or names of the bank that "
        "`rahf directions --bank` has fitted. They are removed from the shift, and "
        "`protect_weight` penalises movement along them.",
    )
    instructions: dict[str, str] = option(
        DEFAULT_INSTRUCTIONS,
        f"The instructions {{positive, negative}} of {_INSTRUCTED}. They should differ only in "
        "the words that name the preference.",
    )

    @property
    def facts(self) -> Method:
        """Return what is particular to the method: its row of the table."""
        return METHODS[self.method]


def shift_problems(options: ShiftOptions) -> list[str]:
    """Return the problems of what the shift is read from."""
    name, method, problems = options.method, options.facts, []
    if options.reference not in method.references:
        owners = " or ".join(method_names(lambda row: options.reference in row.references))
        problems.append(
            f"reference: {options.reference} is a teacher of method {owners}, not of {name}: set "
            f"reference: base or method: {owners}"
        )
    readers = " or ".join(method_names(lambda row: row.reads_directions))
    if method.reads_directions and options.directions is None:
        problems.append(f"method: {name} needs directions, the path of stored directions")
    if options.directions is not None and not method.reads_directions:
        problems.append(
            f"directions: not read by method {name}: remove it, or set method: {readers}"
        )
    problems += protect_problems(options)
    return problems + (instruction_problems(options.instructions) if method.instructed else [])


def named_rightly(protect: Any) -> bool:
    """Return whether the value of `protect` is a list of texts, none of them empty."""
    return isinstance(protect, list) and all(isinstance(x, str) and x.strip() for x in protect)


def protect_problems(options: ShiftOptions) -> list[str]:
    """Return the problems of the directions that must not move."""
    if not named_rightly(options.protect):
        return ["protect: should be a list of folders or names, none of them empty"]
    problems = []
    if options.protect and options.facts.pushes_away:
        problems.append(
            f"protect: is removed from a shift, and method {options.method} has none, since it "
            "pushes rejected responses away: remove protect, or set another method"
        )
    if len(set(options.protect)) < len(options.protect):
        problems.append("protect: names a direction twice: remove one")
    return problems


def instruction_problems(instructions: dict) -> list[str]:
    """Return the problems of the two texts under which the views are read."""
    texts = [instructions.get(side) for side in ("positive", "negative")]
    if set(instructions) != {"positive", "negative"}:
        given = ", ".join(map(str, instructions)) or "nothing"
        return [f"instructions: needs exactly the keys positive and negative, given: {given}"]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return ["instructions: positive and negative must both be text that is not empty"]
    if texts[0].strip() == texts[1].strip():
        return [
            "instructions: positive and negative are the same text, so their difference would be "
            "zero"
        ]
    return []


@dataclass(frozen=True)
class TeacherOptions:
    """Step 1. A path names an existing teacher, which is then not trained.

    In a recipe, TrainingArguments keys are allowed beside these: see `Recipe.teacher_training`.
    """

    positive: str | None = option(
        None, "Adapter or full model to use as the positive teacher (dual)."
    )
    negative: str | None = option(
        None, "Adapter or full model to use as the negative teacher (dual)."
    )
    contrast: str | None = option(
        None, "Adapter or full model to use as the contrast teacher (scit)."
    )
    preferred: str | None = option(
        None, "Adapter or full model to use as the preferred teacher (dpo_shift)."
    )
    beta: Annotated[float, Limits(least=1e-6)] = option(
        0.1,
        "DPO's beta of the preferred teacher (dpo_shift): the larger, the closer it stays to the "
        "base.",
    )
    label_smoothing: Share = option(
        0.2,
        "Share of the mismatched instruction in the contrast term of scit (HIR); 0: the paper's "
        "form.",
    )

    def __post_init__(self):
        raise_problems(value_problems(self, TeacherOptions))


_READ_FOR = {"beta": "preferred", "label_smoothing": "contrast"}
"""The teacher in whose training an option is read."""

_MEANT = {"beta": "; the strength of the DPO term is dpo_beta"}


def unread_teacher_keys(method: str) -> set[str]:
    """Return the options of teachers that a method does not read."""
    trained = METHODS[method].teachers
    unread = {name for name, teacher in _READ_FOR.items() if teacher not in trained}
    return unread | (set(ALL_TEACHERS) - set(trained))


def teacher_problems(teachers: TeacherOptions, method: str) -> list[str]:
    """Return a problem for each option that is set and that the method does not read."""
    default = TeacherOptions()
    return [
        f"teachers.{name}: not read by method {method}: remove it{_MEANT.get(name, '')}"
        for name in (*ALL_TEACHERS, *_READ_FOR)
        if name in unread_teacher_keys(method) and getattr(teachers, name) != getattr(default, name)
    ]
