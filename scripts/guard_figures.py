"""Figures of `guard_experiment.py` over the results of one or more seeds, with 95 % intervals over
the held-out pairs (or texts) and the seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rahf.judges.rules import lexicon_tone
from rahf.report.tables import markdown

WANTED = {"sft": "held_answers", "dpo": "held_wanted"}
"""What a training asks for: SFT right answers' log-probability, DPO their margin."""
STEERED = "steering 1"
"""`plain`, with the direction subtracted when it is measured."""
DRAWS = 2000


def resampled(values: Sequence[Any], figure: Callable[..., Any]) -> list[float]:
    """Return a figure of means over seeds and units, with its 95 % interval over both (bootstrap).

    Args:
        values: per arm, per seed, the value of every unit; a unit is the same in every seed.
    """
    table = np.array(values)
    _, seeds, units = table.shape
    generator = np.random.default_rng(0)
    of_units = generator.integers(units, size=(DRAWS, units))
    of_seeds = generator.integers(seeds, size=(DRAWS, seeds))
    means = table[:, :, of_units].mean(3)  # [arms, seeds, draws]
    drawn = means[:, of_seeds, np.arange(DRAWS)[:, None]].mean(2)
    return [
        float(figure(*table.mean((1, 2)))),
        *map(float, np.quantile(figure(*drawn), (0.025, 0.975))),
    ]


def figures_of(seeds: Sequence[Mapping], name: str) -> dict[str, list[float]]:
    """Return the figures of an arm over the results of one or more seeds."""

    def of(key: str, *arms: str) -> list[list[list[float]]]:
        return [[measured_of(each, arm)[key] for each in seeds] for arm in arms]

    trait = of("held_trait", "plain", "oracle", name)
    return {
        "trait margin": resampled(trait[2:], lambda a: a),
        "leak removed": resampled(trait, lambda p, o, a: (p - a) / (p - o)),
        "past the oracle": resampled(trait, lambda _, o, a: o - a),
        "wanted kept": resampled(
            of(WANTED[seeds[0]["training"]], "base", "plain", name),
            lambda b, p, a: (a - b) / (p - b),
        ),
        "loss over plain": resampled(of("unrelated", "plain", name), lambda p, a: a - p),
        "loss over oracle": resampled(of("unrelated", "oracle", name), lambda p, a: a - p),
    }


def measured_of(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return what was measured on an arm, on the base, or on `plain` that is steered."""
    if name == STEERED:
        return results["arms"]["plain"]["steered"]
    return results["base"] if name == "base" else results["arms"][name]


def shared_arms(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the arms that every seed has, in the order of the first."""
    return [name for name in seeds[0]["arms"] if all(name in each["arms"] for each in seeds)]


def table(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures of all arms that every seed has; seconds are means over seeds."""
    names = ["base", *shared_arms(seeds), STEERED]
    header = ["arm", "trait margin", "leak removed", "past the oracle", "wanted kept"]
    header += ["loss over plain", "loss over oracle", "seconds"]
    rows = []
    for name in names:
        figures = figures_of(seeds, name)
        cells = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*figures[key]) for key in header[1:-1]]
        taken = np.mean([measured_of(each, name).get("seconds", np.nan) for each in seeds])
        rows.append([name, *cells, "-" if np.isnan(taken) else f"{taken:.0f}"])
    return markdown(header, rows)


def judged(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return the tone of the answers of arms that wrote some, -1 to 1, beside the oracle."""
    tone = lexicon_tone()
    of = {
        name: [tone([row["response"] for row in each["arms"][name]["answers"]]) for each in seeds]
        for name in shared_arms(seeds)
        if all("answers" in each["arms"][name] for each in seeds)
    }
    rows = []
    for name, scores in of.items() if "oracle" in of else ():
        figures = resampled([scores], lambda a: a), resampled([scores, of["oracle"]], minus)
        rows.append([name, *("{:+.3f} [{:+.3f}, {:+.3f}]".format(*each) for each in figures)])
    return markdown(["arm", "tone", "minus the oracle"], rows)


def minus(one: Any, other: Any) -> Any:
    return one - other
