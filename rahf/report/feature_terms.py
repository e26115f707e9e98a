"""Tables of the terms of a direction, and of the tokens that name features."""

from collections.abc import Mapping, Sequence
from typing import Any

from rahf.report.escaping import visible_token
from rahf.report.explanations import explanation_cells
from rahf.report.tables import markdown

TERMS_SHOWN = 16


def decomposition_table(figures: Mapping[str, Any]) -> str:
    """Return the terms of a direction, with the R2 that random vectors reach."""
    band, terms = figures["random"], figures["terms"][:TERMS_SHOWN]
    explained, cells = explanation_cells(terms)
    rows = [
        [
            str(place + 1),
            str(term["feature"]),
            f"{term['coefficient']:+.3f}",
            f"{term['r2']:.3f}",
            f"{band['median'][place]:.3f} [{band['low'][place]:.3f}, {band['high'][place]:.3f}]",
            *([tokens_text(term["raises"])] if "raises" in term else []),
            *cells[place],
        ]
        for place, term in enumerate(terms)
    ]
    header = ["term", "feature", "coefficient", "R2", "random vectors"]
    header += ["raises"] if any("raises" in term for term in terms) else []
    header += explained
    above = figures["terms_above_random"]
    verdict = (
        f"The sum explains more than random vectors with each number of terms up to {above}."
        if above
        else "The first term explains no more than that of a random vector."
    )
    return f"{markdown(header, rows)}\n\n{verdict}"


def tokens_text(tokens: Sequence[str]) -> str:
    """Return the tokens, every character of each visible, between spaces."""
    return " ".join(map(visible_token, tokens))


def logits_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the tokens that each feature raises and lowers."""
    cells = [
        [str(row["feature"]), tokens_text(row["raises"]), tokens_text(row["lowers"])]
        for row in rows
    ]
    return markdown(["feature", "raises", "lowers"], cells)
