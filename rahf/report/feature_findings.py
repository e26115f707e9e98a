"""Tables of what dictionary features show: decompositions, movements, probes, comparisons."""

from collections.abc import Mapping, Sequence
from typing import Any

from rahf.report.tables import markdown

TERMS_SHOWN = 16


def decomposition_table(figures: Mapping[str, Any]) -> str:
    """Return the terms of a direction, with the R2 that random vectors reach."""
    band = figures["random"]
    rows = [
        [
            str(place + 1),
            str(term["feature"]),
            f"{term['coefficient']:+.3f}",
            f"{term['r2']:.3f}",
            f"{band['median'][place]:.3f} [{band['low'][place]:.3f}, {band['high'][place]:.3f}]",
            *([tokens_text(term["raises"])] if "raises" in term else []),
        ]
        for place, term in enumerate(figures["terms"][:TERMS_SHOWN])
    ]
    header = ["term", "feature", "coefficient", "R2", "random vectors"]
    header += ["raises"] if rows and len(rows[0]) > len(header) else []
    above = figures["terms_above_random"]
    verdict = (
        f"The sum explains more than random vectors with up to {above} terms."
        if above
        else "The sum explains no more than that of a random vector, whatever the number of terms."
    )
    return f"{markdown(header, rows)}\n\n{verdict}"


def tokens_text(tokens: Sequence[str]) -> str:
    return " ".join(repr(token)[1:-1].strip() or "' '" for token in tokens)


def movement_tables(figures: Mapping[str, Any]) -> str:
    """Return the features that moved, and below what rivals show of the same rows."""
    rows = [_movement_row(row) for row in figures["features"]]
    header = ["feature", "effect [95 %]", "q", "size", "placebo", "seeds", "fires", "notes"]
    header += ["seen by"] + (["raises"] if rows and len(rows[0]) > len(header) + 1 else [])
    parts = [
        _movement_heading(figures),
        markdown(header, rows),
        _rivals_table(figures),
        _verdict(figures),
    ]
    if figures["fits_aligned_worse"]:
        fit = figures["fit"]
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
            f"{text} WARNING: no placebo stands beside it, and training on shuffled pairs moves "
            "many features too: give --placebo."
        )
    return (
        f"{text} 95 % of the placebo's sizes lie within {figures['placebo_band']:.3f}; "
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
        f"tokens of base and aligned model are told apart with an AUC of {areas['probe']:.3f} by a "
        f"linear probe, {areas['mean']:.3f} along the mean difference."
    )
    return f"{markdown(header, rows)}\n\n{text}"


def _verdict(figures: Mapping[str, Any]) -> str:
    moved = sum(row["moved"] for row in figures["features"][:10])
    return (
        f"Of the first ten features {moved} moved; {figures['unseen_by_rivals']} of them are seen "
        "by no rival (mean difference, principal components, probe, token KL)."
    )


def probe_table(figures: Mapping[str, Any]) -> str:
    """Return held-out AUC and accuracy of each probe on one set of texts."""
    rows = []
    for name, probes in figures["probes"].items():
        by_k = {"all": probes} if "auc" in probes else probes
        rows += [[name, k, _interval(p["auc"]), _interval(p["accuracy"])] for k, p in by_k.items()]
    title = (
        f"{figures['texts']}: {figures['train']} texts to fit on, {figures['test']} held out, "
        f"{figures['share']:.0%} labelled {figures['positive']}"
    )
    return f"{title}\n\n{markdown(['read', 'k', 'AUC [95 %]', 'accuracy [95 %]'], rows)}"


def _interval(part: Mapping[str, float]) -> str:
    return f"{part['mean']:.3f} [{part['low']:.3f}, {part['high']:.3f}]"


def logits_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the tokens that each feature raises and lowers."""
    cells = [
        [str(row["feature"]), tokens_text(row["raises"]), tokens_text(row["lowers"])]
        for row in rows
    ]
    return markdown(["feature", "raises", "lowers"], cells)


def units_table(figures: Mapping[str, Any]) -> str:
    """Return what the firing of features and of other units says of tokens, at equal rates."""
    rows = [
        [name, _interval(part["current"]), _interval(part["next"])]
        for name, part in figures["units"].items()
    ]
    header = ["units", "current token accounts for", "next token accounts for"]
    text = (
        f"Share of the entropy of firing, held-out tokens, mean over {figures['count']} units of "
        f"each kind with its 95 % interval; median rate {figures['rate']:.2%}, {figures['tokens']} "
        "tokens."
    )
    return f"{markdown(header, rows)}\n\n{text}"


def universality_table(figures: Mapping[str, Any]) -> str:
    """Return the best correlations with the other model, of features and of dimensions."""
    rows = [
        [name, str(part["count"]), *(f"{part[level]:.2f}" for level in ("q25", "median", "q75"))]
        for name, part in figures["correlations"].items()
    ]
    table = markdown(["largest correlation of", "number", "25 %", "median", "75 %"], rows)
    return f"{table}\n\n{figures['tokens']} tokens, the same for both models."


def splitting_table(figures: Mapping[str, Any]) -> str:
    """Return what becomes of the features of a dictionary in a larger one."""
    rows = [[name, f"{share:.1%}"] for name, share in figures["shares"].items()]
    text = (
        f"{figures['small']} features against {figures['large']}, cosine of at least "
        f"{figures['threshold']:g}: lost, kept and split are shares of the smaller dictionary's "
        "features, new is the share of the larger one's that are near none."
    )
    return f"{markdown(['features', 'share'], rows)}\n\n{text}"
