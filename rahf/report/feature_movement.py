"""Tables and a chart of the features that moved between a base and its aligned model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rahf.report.explanations import explanation_cells
from rahf.report.feature_terms import tokens_text
from rahf.report.tables import markdown

LEAST_FIT = 0.5
"""Share of the base's variance below which a dictionary is reported not to fit."""


ENOUGH_PROMPTS = 100
"""Prompts below which the q of a rarely active feature is too small: its changes are skewed."""


def movement_tables(figures: Mapping[str, Any]) -> str:
    """Return the features that moved, and below what rivals show of the same rows."""
    explained, cells = explanation_cells(figures["features"])
    shown = zip(figures["features"], cells, strict=True)
    rows = [[*_movement_row(row), *cell] for row, cell in shown]
    header = ["feature", "effect [95 %]", "q", "size", "placebo", "seeds", "fires", "notes"]
    raises = any("raises" in row for row in figures["features"])
    header += ["shown by", *(["raises"] if raises else []), *explained]
    parts = [
        _movement_heading(figures),
        markdown(header, rows),
        _rivals_table(figures),
        _verdict(figures),
    ]
    fit = figures["fit"]
    if fit["base"] is not None and fit["base"] < LEAST_FIT:
        parts.append(
            f"WARNING: the dictionary explains {fit['base']:.2f} of the variance of the base's "
            "states on these responses, so its features describe little of them."
        )
    if figures["fits_aligned_worse"]:
        parts.append(
            f"WARNING: the dictionary explains {fit['base']:.2f} of the base's variance and "
            f"{fit['aligned']:.2f} of the aligned model's: part of the change is outside of it. "
            "Train a dictionary on the differences as well (rahf features train)."
        )
    return "\n\n".join(parts)


def _movement_heading(figures: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in figures["moved"].items())
    text = (
        f"{figures['prompts']} prompts, {figures['tokens']} response tokens; "
        f"{figures['features_tested']} features tested; with q below 0.05: {counts}."
    )
    if figures["prompts"] < ENOUGH_PROMPTS:
        text += (
            f" With fewer than {ENOUGH_PROMPTS} prompts, q is too small for features that are "
            "active in few of them."
        )
    if figures["placebo_band"] is None:
        return (
            f"{text} WARNING: there is no placebo to compare with, and training on shuffled pairs "
            "moves many features too: give --placebo."
        )
    return (
        f"{text} 95 % of the placebo's sizes are within {figures['placebo_band']:.3f}; "
        f"{figures['beyond_placebo']} features moved beyond that, and of a placebo "
        f"{figures['beyond_of_placebos']:.0f} would."
    )


def _movement_row(row: Mapping[str, Any]) -> list[str]:
    placebo = ", ".join(f"{size:+.2f}" for size in row["placebo_size"])
    notes = [
        *(f"tracks {name}" for name in row["tracks"]),
        *([] if row["moved"] else ["not moved"]),
    ]
    return [
        str(row["feature"]),
        f"{row['effect']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]",
        f"{row['q']:.1e}",
        f"{row['size']:+.2f}",
        placebo or "-",
        "{} of {}".format(*row["seeds_alike"]),
        "{:.1%} to {:.1%}".format(*row["rate"]),
        ", ".join(notes) or "-",
        ", ".join(row["seen_by"]) or "none",
        *([tokens_text(row["raises"])] if "raises" in row else []),
    ]


def _rivals_table(figures: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{part['of_squared_norm']:.2f}", f"{part['of_variance']:.2f}"]
        for name, part in figures["explained"].items()
    ]
    header = ["explains of the differences", "of the squared norm", "of the variance"]
    kl, areas = figures["token_kl"], figures["separability"]
    text = (
        f"Token KL {kl['mean']:.4f} [{kl['low']:.4f}, {kl['high']:.4f}] nats per token. Single "
        f"tokens of base and aligned model are distinguished with an AUC of "
        f"{areas['probe']:.3f} by a linear probe, {areas['mean']:.3f} along the mean difference."
    )
    return f"{markdown(header, rows)}\n\n{text}"


def _verdict(figures: Mapping[str, Any]) -> str:
    moved = sum(row["moved"] for row in figures["features"][:10])
    return (
        f"Of the first ten features {moved} moved; {figures['unseen_by_rivals']} of them are shown "
        "by no rival: neither the mean difference nor the principal components make half of the "
        "effect, and neither the probe nor the token KL follows it."
    )


def movement_figure(figures: Mapping[str, Any], path: Path) -> None:
    """Draw the listed features beside the placebos, and the sizes of all tested features."""
    from matplotlib.figure import Figure

    rows = figures["features"]
    height = max(3.4, 1.2 + 0.22 * len(rows))
    figure = Figure(figsize=(11, height), layout="constrained")
    listed, tested = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_listed(listed, rows, figures["placebo_band"])
    for name, sizes in figures["size_quantiles"].items():
        left = [1 - step / max(1, len(sizes) - 1) for step in range(len(sizes))]
        style = "--" if name.startswith("placebo") else "-"
        tested.plot(sizes[:-1], left[:-1], style, label=SHOWN.get(name, name.replace("_", " ")))
    if figures["placebo_band"] is not None:
        tested.axvspan(0, figures["placebo_band"], color=BAND_COLOR, zorder=0)
    tested.set(xlabel="size above", ylabel="share of the features", title="all tested features")
    tested.set(xlim=(0, None), yscale="log", ylim=(0.01, 1))
    tested.legend(frameon=False)
    figure.savefig(path, dpi=100)


BAND_COLOR = "#e8e8e8"
SHOWN = {"default": "adapter"}


def _draw_listed(axes: Any, rows: list[Mapping[str, Any]], band: float | None) -> None:
    """Draw each feature's size with its interval, hollow circles where placebos have it."""
    places = range(len(rows))
    if band is not None:
        axes.axvspan(-band, band, color=BAND_COLOR, zorder=0, label="95 % of the placebo's sizes")
    axes.axvline(0, color="#999", linewidth=0.8)
    scales = [row["size"] / row["effect"] if row["effect"] else 0.0 for row in rows]
    bounds = [
        [scale * (row["effect"] - row["low"]) for scale, row in zip(scales, rows, strict=True)],
        [scale * (row["high"] - row["effect"]) for scale, row in zip(scales, rows, strict=True)],
    ]
    axes.errorbar(
        [row["size"] for row in rows], places, xerr=bounds, fmt="o", markersize=4, label="adapter"
    )
    placebos = [(size, place) for place in places for size in rows[place]["placebo_size"]]
    if placebos:
        axes.plot(*zip(*placebos, strict=True), "o", color="C1", fillstyle="none", label="placebo")
    labels = [f"{row['feature']} {_drawn(row.get('raises', []))}" for row in rows]
    axes.set_yticks([*places], labels, fontsize="x-small", parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="size: effect / standard deviation", title="listed features, tokens they raise")
    axes.legend(frameon=False, fontsize="x-small")


def _drawn(tokens: Sequence[str]) -> str:
    """Return a few tokens; letters that the font of the chart lacks become question marks."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont(None)).get_charmap()
    text = tokens_text(tokens[:TOKENS_DRAWN])
    return "".join(letter if ord(letter) in known else "?" for letter in text)


TOKENS_DRAWN = 4
