"""Dictionaries as a table and a figure: what each is worth on held-out text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rahf.report.tables import markdown

EDGES = ("< 1e-6", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "> 0.1")


def quality_table(figures: Mapping[str, Any]) -> str:
    """Return a markdown table, a line for each dictionary, and how many tokens were not read."""
    kept = "loss recovered" if figures["kind"] == "states" else "KL recovered"
    header = ["layer", "latents", "seed", "L0", "variance explained", kept, "dead", "silent"]
    header += ["agreement of seeds", "latents found again", "by chance"]
    table = markdown(header, [_line(row) for row in figures["dictionaries"]])
    if not figures["massive_tokens"]:
        return table
    return (
        f"{table}\n\n{figures['massive_tokens']} held-out tokens beside the "
        f"{figures['held_out_tokens']:,} measured ones have massive states, which are not read."
    )


def _line(row: Mapping[str, Any]) -> list[str]:
    agreement = row["agreement"]
    return [
        *(str(row[key]) for key in ("layer", "latents", "seed")),
        f"{row['l0']:.1f}",
        f"{row['explained']:.3f}",
        f"{row['loss']['recovered']:.3f}",
        *(f"{row[key]:.1%}" for key in ("dead", "silent")),
        *(
            ["-", "-", "-"]
            if agreement is None
            else [
                f"{agreement['cosine']:.2f}",
                f"{agreement['alike']:.0%}",
                f"{agreement['chance']:.2f}",
            ]
        ),
    ]


def quality_figure(
    figures: Mapping[str, Any], log: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Draw the variance left over the training, and the density of the latents."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, density = figure.subplots(1, 2)
    tokens = [line["tokens"] for line in log]
    for name in log[-1]["unexplained"]:
        left.plot(tokens, [line["unexplained"][name] for line in log], ".-", label=name)
    left.set(xlabel="tokens", ylabel="share of the variance", title="left unexplained, training")
    left.set_ylim(0, None)
    left.legend(frameon=False, fontsize="x-small")
    for row in figures["dictionaries"]:
        shares = [count / row["latents"] for count in row["density"]]
        name = f"layer {row['layer']}, {row['latents']} latents, seed {row['seed']}"
        density.plot(EDGES, shares, "o-", label=name)
    density.set(
        xlabel="share of tokens, from", ylabel="share of latents", title="density, held-out text"
    )
    figure.savefig(path, dpi=120)


def estimate_text(estimate: Mapping[str, Any]) -> str:
    """Return what a training will take, as a table."""
    rows = [
        ["tokens of the text", f"{estimate['text_tokens']:,}"],
        ["passes over it", f"{estimate['passes']:.1f}"],
        ["dictionaries", str(estimate["dictionaries"])],
        ["time", duration(estimate["seconds"])],
        ["of it the model's forward passes", f"{estimate['reading']:.0%}"],
        ["of it the figures on held-out text", f"{estimate['measuring']:.0%}"],
        ["memory beside the model", size(estimate["memory"])],
        ["dictionaries on disk", size(estimate["disk"])],
    ]
    return markdown(["", "estimate"], rows)


def duration(seconds: float) -> str:
    """Return a time in the units that show it: 12 s, 5 min, 2 h 30 min."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def size(count: float) -> str:
    """Return a number of bytes in the unit that shows it."""
    for unit, bytes_of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bytes_of:
            return f"{count / bytes_of:.3g} {unit}"
    return f"{count:.0f} B"
