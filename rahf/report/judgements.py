"""Figures of `rahf evaluate` as tables."""

from collections.abc import Mapping
from typing import Any

from rahf.report.tables import markdown, with_ends

MEASURES = {
    "sum": "sum of log-probabilities",
    "per_token": "per token",
    "per_byte": "per byte",
    "implicit_reward": "implicit reward (change against the reference)",
}

PLACES = {"orders_agree": "both orders agree", "first_place_preferred": "first place preferred"}

INTERVAL = "_interval"
"""The end of the name of the interval of a figure."""

ALIKE = "The judge gives every response the same score, so it decides nothing: name another judge."
TIED = "The judge finds every pair of responses equal, so it decides nothing: name another judge."


def share(estimate: Mapping[str, float] | None) -> str:
    """Return a share with its interval."""
    return "-" if estimate is None else with_ends(estimate, ".1%")


def number(estimate: Mapping[str, float], form: str = "+.4f") -> str:
    """Return a mean with its interval."""
    return with_ends(estimate, form)


def preferences_table(figures: Mapping[str, Any]) -> str:
    """Return accuracy and margin under each measure, and the accuracy of length alone."""
    rows = [
        [title, share(figures[name]["accuracy"]), number(figures[name]["margin"])]
        for name, title in MEASURES.items()
        if name in figures
    ]
    rows.append(["(the longer one is the chosen one)", share(figures["longer_is_chosen"]), "-"])
    table = markdown(["measure", "accuracy", "margin (nats)"], rows)
    return f"{table}\n\n{figures['pairs']} pairs, {figures['dropped_pairs']} dropped"


def wins_table(figures: Mapping[str, Any]) -> str:
    """Return a comparison of two files, seen from the first."""
    if not figures["prompts"] - figures["missing"]:
        return f"none of the {figures['prompts']} verdicts could be read"
    rows = [
        ["win rate (ties count half)", share(figures["win_rate"])],
        ["win rate at equal length (fitted)", share(figures["win_rate_at_equal_length"])],
        ["the longer response wins", share(figures["longer_wins"])],
        ["wins / ties / losses", "{wins} / {ties} / {losses}".format(**figures)],
        ["verdicts missing", str(figures["missing"])],
        ["characters of a response", "{:.0f} against {:.0f}".format(*figures["characters"])],
    ]
    if "orders_agree" in figures:
        for key in ("orders_agree", "first_place_preferred"):
            low, high = figures[key + INTERVAL]
            estimate = {"mean": figures[key], "low": low, "high": high}
            rows.append([PLACES[key], share(estimate)])
    head = f"{figures['first']} against {figures['second']}"
    tied = figures["ties"] == figures["prompts"] - figures["missing"]
    note = f"\n\n{TIED}" if tied else ""
    return f"{markdown([head, ''], rows)}\n\njudge: {figures['judge']}{note}"


def score_table(figures: Mapping[str, Any]) -> str:
    score = number(figures["score"], "+.3f") if "score" in figures else "-"
    table = markdown(["mean score", "missing"], [[score, str(figures["missing"])]])
    alike = figures["distinct"] == 1 and figures["responses"] - figures["missing"] > 1
    return f"{table}\n\n{ALIKE}" if alike else table


def aspects_table(aspects: Mapping[str, Mapping[str, float]]) -> str:
    """Return the mean score of each aspect."""
    rows = [
        [name, number(marks, ".2f") if "mean" in marks else "-", str(marks["missing"])]
        for name, marks in aspects.items()
    ]
    return markdown(["aspect", "mark (1-5)", "missing"], rows)


def tasks_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Return every figure of every task by the harness's names, with its interval if it has one;
    None is one that is not finite.
    """
    rows = [
        [task, name, _with_interval(values, name)]
        for task, values in tasks.items()
        for name in values
        if not name.endswith(INTERVAL)
    ]
    return markdown(["task", "figure", "value"], rows)


def _with_interval(values: Mapping[str, Any], name: str) -> str:
    if values[name] is None:
        return "not finite"
    low, high = values.get(name + INTERVAL, (None, None))
    return with_ends({"mean": values[name], "low": low, "high": high}, ".4g")
