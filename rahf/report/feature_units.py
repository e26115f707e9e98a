"""Tables of features beside probes, neurons, other models and other dictionaries."""

from collections.abc import Mapping
from typing import Any

from rahf.report.tables import markdown, with_ends


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
    return with_ends(part, ".3f")


def units_table(figures: Mapping[str, Any]) -> str:
    """Return what the firing of features and other units reveals about tokens, at equal rates."""
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
        "features, new is the share of the larger one's that are near no other."
    )
    return f"{markdown(['features', 'share'], rows)}\n\n{text}"
