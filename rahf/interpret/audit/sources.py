"""What an audit looks at: the traits of the answers, the ability, directions, other preferences.

From what commands have left of a training and of its placebos. Knows files' records; no model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rahf.evaluation.intervals import Estimate
from rahf.interpret.audit.changes import Looked, Z, change_of, interval_p
from rahf.judges.rules import declines
from rahf.report.comparison import repeated_share
from rahf.report.page.reading import Part, Run, last_reading, number
from rahf.report.tables import SCALES

RULES: dict[str, tuple[str, Callable[[str], float]]] = {
    "length": ("characters", len),
    "repetition": ("share of runs of three words that occurred before", repeated_share),
    "refusal": ("share of answers that decline", declines),
    "empty": ("share of answers", lambda text: not text.strip()),
}
"""Traits that every answer shows, whatever the judges: their unit, and the rule."""

BASE, POLICY = "base", "policy"


class Skipped(NamedTuple):
    """What could not be looked at, and why."""

    name: str
    reason: str


def looked_at(
    run: Run, placebos: Sequence[Run], preferences: Sequence[Part], asked: Sequence[str] = ()
) -> tuple[list[Looked], list[Skipped]]:
    """Return everything that can be looked at of a training.

    Args:
        preferences: figures of `rahf evaluate preferences` of the trained adapter.
        asked: names that count as asked for, beside the first judge.
    """
    skipped: list[Skipped] = []
    own = [*_of_answers(run, placebos, skipped), *_ability(run, placebos, skipped)]
    own += [*_directions(run, placebos), *_preferences(preferences)]
    return [each._replace(asked=each.asked or each.name in asked) for each in own], skipped


def _of_answers(run: Run, placebos: Sequence[Run], skipped: list[Skipped]) -> list[Looked]:
    """Return the changes of rules and judges, answer by answer."""
    rows = [row for row in run.answers if {BASE, POLICY} <= row["answers"].keys()]
    if not rows:
        return []
    others = _alike(rows, placebos, skipped)
    judges, wanted = _judges(run), _asked_judge(run)
    found = []
    for name, (unit, rule) in RULES.items():
        if name not in judges:
            values = [[rule(row["answers"][side]) for row in rows] for side in (BASE, POLICY)]
            after = [[rule(row["answers"][POLICY]) for row in other] for other in others]
            found.append(change_of(name, unit, *values, after))
    for judge in judges:
        unit = SCALES.get(judge.partition(":")[0], "score")
        found.append(_judged(judge, unit, rows, others, first=judges[0], asked=judge == wanted))
    return [each for each in found if each is not None]


def _alike(
    rows: Sequence[Mapping[str, Any]], placebos: Sequence[Run], skipped: list[Skipped]
) -> list[list[Mapping[str, Any]]]:
    """Return the answers of each placebo to the same prompts."""
    found, prompts = [], [row["prompt"] for row in rows]
    for placebo in placebos:
        by_prompt = {str(row["prompt"]): row for row in placebo.answers if POLICY in row["answers"]}
        there = [by_prompt.get(str(prompt)) for prompt in prompts]
        if all(row is not None for row in there):
            found.append(there)
        else:
            reason = "no answers" if not by_prompt else "answers to other prompts"
            skipped.append(Skipped(f"placebo {placebo.folder}", reason))
    return found


def _judges(run: Run) -> list[str]:
    """Return the judges of the answers, the one that was asked for first."""
    policy = _models(run).get(POLICY, {})
    first = [policy["judge"]] if isinstance(policy.get("judge"), str) else []
    if not first and any("scores" in row for row in run.answers):
        first = ["judge"]
    others = [name for row in run.answers[:1] for name in row.get("by_judge", {})]
    return list(dict.fromkeys([*first, *others]))


def _asked_judge(run: Run) -> str | None:
    return next(iter(_judges(run)), None)


def _models(run: Run) -> Mapping[str, Any]:
    models = run.metrics.get("models")
    return models if isinstance(models, dict) else {}


def _judged(
    judge: str,
    unit: str,
    rows: Sequence[Mapping[str, Any]],
    others: Sequence[Sequence[Mapping[str, Any]]],
    *,
    first: str,
    asked: bool,
) -> Looked | None:
    """Return the change of a judge's score over the answers that it could read.

    A judge that compares has no score of the base, which ties with itself: 0.5.
    """

    def score(row: Mapping[str, Any], side: str) -> float | None:
        scores = row.get("by_judge", {}).get(judge)
        scores = row.get("scores", {}) if scores is None and judge == first else scores or {}
        return scores.get(side, 0.5 if side == BASE else None)

    columns = [[score(row, side) for row in rows] for side in (BASE, POLICY)]
    after = [[score(row, POLICY) for row in other] for other in others]
    after = [column for column in after if any(value is not None for value in column)]
    whole = [place for place in zip(*columns, *after, strict=True) if None not in place]
    if not whole:
        return None
    before, policy, *rest = ([number(value) for value in part] for part in zip(*whole, strict=True))
    return change_of(judge, unit, before, policy, rest, asked=asked)


def _ability(run: Run, placebos: Sequence[Run], skipped: list[Skipped]) -> list[Looked]:
    """Return the rise of the loss on unrelated text."""
    name, unit = "ability loss", "nats per token of unrelated text"
    rows = [row for row in run.texts if {BASE, POLICY} <= row["loss"].keys()]
    if not rows:
        if "unrelated_loss" in _models(run).get(POLICY, {}):
            skipped.append(Skipped(name, "measured by an earlier version, without an interval"))
        return []
    counts = [number(row["tokens"]) for row in rows]
    others = [
        [number(row["loss"][POLICY]) for row in placebo.texts]
        for placebo in placebos
        if [row["tokens"] for row in placebo.texts] == counts
        and all(POLICY in row["loss"] for row in placebo.texts)
    ]
    values = [[number(row["loss"][side]) for row in rows] for side in (BASE, POLICY)]
    found = change_of(name, unit, *values, others, counts)
    return [found] if found else []


def _directions(run: Run, placebos: Sequence[Run]) -> list[Looked]:
    """Return the movement along directions that a monitor watched, at its last reading."""
    others, found = [last_reading(placebo.log) for placebo in placebos], []
    for name, moved in last_reading(run.log).items():
        moved = Estimate(*moved)
        there = tuple(other[name][0] for other in others if name in other)
        # The unit is the direction itself, which is the spread as well.
        unit = "of the direction"
        found.append(Looked(f"direction {name}", unit, 0.0, moved, interval_p(moved), 1.0, there))
    return found


def _preferences(parts: Sequence[Part]) -> list[Looked]:
    """Return the change of the margin on the pairs of each file, against the adapter off."""
    found = []
    for part in parts:
        reward, pairs = part.figures.get("implicit_reward"), part.figures.get("pairs", 0)
        if not reward or reward["margin"].get("low") is None:
            continue
        ends = [number(reward["margin"][end]) for end in ("mean", "low", "high")]
        margin = Estimate(*ends)
        spread = (margin.high - margin.low) / (2 * Z) * number(pairs) ** 0.5
        name = f"pairs of {part.path.stem}"
        found.append(Looked(name, "nats per response", 0.0, margin, interval_p(margin), spread))
    return found
