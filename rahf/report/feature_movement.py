"""Tables of the features that moved between a base and its aligned model."""

from collections.abc import Mapping
from typing import Any

from rahf.report.explanations import explanation_cells
from rahf.report.feature_terms import tokens_text
from rahf.report.tables import markdown

LEAST_FIT = 0.5
"""Share of the base's variance below which a dictionary is reported not to fit."""


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
    if figures["placebo_band"] is None:
        return (
            f"{text} WARNING: there is no placebo to compare with, and training on shuffled pairs "
            "moves many features too: give --placebo."
        )
    return (
        f"{text} 95 % of the placebo's sizes are within {figures['placebo_band']:.3f}; "
        f"{figures['beyond_placebo']} features moved beyond that."
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
