"""Measurements -> ratios with their spread, a table in markdown, a chart. Reads no clock."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

GIB = 2**30


def summarize(measured: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of every variant of one method over the repetitions, each with rows of its
    own.
    """
    runs, ceiling = measured["runs"], measured["ceiling"]
    figures = {name: by_repetition(name, repeated) for name, repeated in runs.items()}
    variants = {
        name: {
            "step_seconds": spread(found["step_seconds"]),
            "response_tokens_per_second": median(found["response_tokens_per_second"]),
            "memory_bytes": spread(found["memory"]),
            "flops_per_step": sum(found["flops"]) / len(found["flops"]),
            "achieved_flops": median(found["achieved_flops"]),
            "utilisation": median(found["achieved_flops"]) / ceiling,
        }
        for name, found in figures.items()
    }
    over_rahf = {
        name: {
            key: ratio(found[key], figures["rahf"][key])
            for key in ("step_seconds", "memory", "flops")
        }
        for name, found in figures.items()
    }
    return {"variants": variants, "over_rahf": over_rahf, "loss_difference": loss_difference(runs)}


def by_repetition(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the figures of a variant in each repetition, means over its steps."""
    seconds = [sum(run["seconds"]) / len(run["seconds"]) for run in runs]
    tokens = [run["response_tokens"]["dpo" if name == "dpo" else "aligned"] for run in runs]
    flops = [run["flops"] for run in runs]
    return {
        "step_seconds": seconds,
        "memory": [run["memory"] for run in runs],
        "flops": flops,
        "achieved_flops": [a / b for a, b in zip(flops, seconds, strict=True)],
        "response_tokens_per_second": [a / b for a, b in zip(tokens, seconds, strict=True)],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def ratio(others: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """Return the ratio of the means of all repetitions, and its range within a repetition, whose
    runs alternate.
    """
    within = [other / one for other, one in zip(others, own, strict=True)]
    return {"mean": sum(others) / sum(own), "least": min(within), "most": max(within)}


def loss_difference(runs: dict[str, Any]) -> float | None:
    """Return the largest relative difference of the losses of naive and rahf, over all steps."""
    if "naive" not in runs or "rahf" not in runs:
        return None
    return max(
        abs(own - naive) / abs(naive)
        for others, ours in zip(runs["naive"], runs["rahf"], strict=True)
        for naive, own in zip(others["losses"], ours["losses"], strict=True)
    )


def table(method: str, summary: dict[str, Any]) -> str:
    """Return the figures in markdown."""
    lines = [
        f"| {method} | s/step | over rahf | peak GiB | over rahf | TFLOP/step | over rahf "
        "| GFLOP/s | of the ceiling | response tokens/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in summary["variants"].items():
        over = summary["over_rahf"][name]
        lines.append(
            f"| {name} | {within(found['step_seconds'])} | {within(over['step_seconds'])} "
            f"| {within(found['memory_bytes'], GIB)} | {within(over['memory'])} "
            f"| {found['flops_per_step'] / 1e12:.3f} | {within(over['flops'])} "
            f"| {found['achieved_flops'] / 1e9:,.0f} "
            f"| {found['utilisation']:.0%} | {found['response_tokens_per_second']:,.0f} |"
        )
    if summary["loss_difference"] is not None:
        lines += ["", f"Largest relative difference of the losses of naive and rahf: "
                      f"{summary['loss_difference']:.1e}."]  # fmt: skip
    return "\n".join(lines)


def within(values: dict[str, float], unit: float = 1) -> str:
    """Return the median or mean, and the range around it."""
    middle, least, most = (value / unit for value in values.values())
    return f"{middle:.2f} [{least:.2f}, {most:.2f}]"


def chart(summaries: dict[str, Any], path: Path) -> None:
    """Draw step time against peak memory: a point a variant, a panel a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(summaries), 3.6), layout="constrained")
    panels = figure.subplots(1, len(summaries), squeeze=False)[0]
    for panel, (method, summary) in zip(panels, summaries.items(), strict=True):
        for name, found in summary["variants"].items():
            seconds, memory = found["step_seconds"]["median"], found["memory_bytes"]["median"] / GIB
            panel.plot(memory, seconds, "o", color="C0")
            panel.annotate(name, (memory, seconds), xytext=(5, 4), textcoords="offset points")
        panel.set(title=method.upper(), xlabel="peak memory, GiB", ylabel="seconds a step")
        panel.set_xlim(0, panel.get_xlim()[1] * 1.2)
        panel.set_ylim(0, panel.get_ylim()[1] * 1.1)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
