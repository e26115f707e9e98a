"""Options of `rahf compare`: which rows are compared and how each is tuned; and their checks.

Knows no model, no data and no file.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from rahf.recipe.fields import Limits, Share, option, raise_problems, value_problems
from rahf.recipe.judge_options import JUDGE_HELP, JudgeOptions
from rahf.recipe.methods import METHODS

UNTRAINED = ("base", "urial")

ALIGNED = tuple(name for name, method in METHODS.items() if not method.pushes_away)
"""Methods that a row of a comparison can be."""

ROW_KINDS = (*UNTRAINED, "sft", "dpo", *ALIGNED)
"""What a row of a comparison can be; a name may have a suffix: `dual-retain`."""

ROW_NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""Characters of a row's name, which also names a folder. It starts with the kind of the row, so it
is neither hidden nor `..`."""

_ROWS = {
    kind: {} for kind in ROW_KINDS if kind not in ALIGNED or not METHODS[kind].reads_directions
}


@dataclass(frozen=True)
class CompareOptions(JudgeOptions):
    """The rows that `rahf compare` compares, and how each of them is tuned."""

    rows: dict[str, dict] = option(
        _ROWS,
        f"The rows, as {{name: its own recipe keys}}. A name is a kind ({', '.join(ROW_KINDS)}), "
        "with any suffix after a dash: dual-retain. dpo also takes `beta`. An sft row is trained "
        "with the keys of the top level.",
    )
    trials: dict[str, list] = option(
        {},
        "Settings tried for a row on held-out training pairs, as {name: [keys, keys, ...]}; every "
        "tuned row gets the same number of them. The best setting is trained with every seed.",
    )
    seeds: list[int] = option([0, 1, 2], "Seeds of the trained rows.")
    strengths: list[float] = option(
        [0.5, 1.0, 1.5, 2.0],
        "Factors that scale a trained adapter: the points of its trade-off curve. 1 is the "
        "adapter itself.",
    )
    judge: str | list[str] = option(
        "lexicon", f"{JUDGE_HELP}. A list: the first decides, the others are reported beside it."
    )
    repetition_limit: Annotated[float, Limits(least=0)] = option(
        1.0,
        "Largest share of repeated word triples in an answer; an answer above it counts as the "
        "base's own answer. 1: no limit.",
    )
    urial: str | None = option(
        None,
        "File with the instruction and the examples of urial rows; null: the file that comes with "
        "rahf.",
    )
    cost: Literal["loss", "kl"] = option(
        "loss",
        "Ability loss, in nats per token of unrelated text. loss: the rise of the "
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
        raise_problems(problems or [*comparison_problems(self), *self.judge_problems()])


def comparison_problems(options: CompareOptions) -> list[str]:
    """Return the problems of the rows, of their trials and of the points of their curves."""
    unnamed = [name for name in (*options.rows, *options.trials) if not isinstance(name, str)]
    if unnamed:
        return [f"rows: {name!r} is not text, which a row's name must be" for name in unnamed]
    unsafe = [name for name in options.rows if not ROW_NAME.fullmatch(name)]
    if unsafe:
        return [
            f"rows: {name!r} is also the name of a folder: use only letters, digits, dash, "
            "underscore and dot"
            for name in unsafe
        ]
    problems = [
        f"rows: {name!r} does not begin with one of {', '.join(ROW_KINDS)}"
        for name in options.rows
        if kind_of_row(name) not in ROW_KINDS
    ]
    keys = [(f"rows.{name}", [given]) for name, given in options.rows.items()]
    keys += [(f"trials.{name}", given) for name, given in options.trials.items()]
    problems += [
        f"{place}: {given!r} is not a mapping of recipe keys to values"
        for place, several in keys
        for given in (several if isinstance(several, list) else [several])
        if not isinstance(given, dict)
    ]
    problems += _trial_problems(options)
    if "base" not in map(kind_of_row, options.rows):
        problems.append("rows: base is missing, which the others are compared with: add base: {}")
    return problems + _number_problems(options)


def _trial_problems(options: CompareOptions) -> list[str]:
    problems = []
    for name in options.trials:
        if name not in options.rows:
            problems.append(f"trials.{name}: there is no row of this name")
        elif kind_of_row(name) in UNTRAINED:
            problems.append(f"trials.{name}: such a row has nothing to tune: remove it")
    counts = {len(given) for given in options.trials.values() if isinstance(given, list)}
    if len(counts) > 1 or 0 in counts:
        problems.append(
            "trials: every row gets equally many, at least one; given are "
            + ", ".join(f"{name}: {len(given)}" for name, given in options.trials.items())
        )
    if options.trials and not options.validation_share:
        problems.append("validation_share: 0 leaves nothing to choose among the trials on")
    return problems


def _number_problems(options: CompareOptions) -> list[str]:
    problems = []
    for name, values, kind in (
        ("seeds", options.seeds, int),
        ("strengths", options.strengths, (int, float)),
    ):
        right = all(isinstance(value, kind) and value >= 0 for value in values)
        if not values or not right or len(set(values)) < len(values):
            problems.append(f"{name}: {values} is not a list of different numbers, at least one")
    if 0 in options.strengths:
        problems.append("strengths: 0 is the base, which every curve starts from: remove it")
    return problems


def kind_of_row(name: str) -> str:
    """Return what a row of a comparison is: its name up to the first dash."""
    return name.partition("-")[0]
