"""Influence of pairs as tables, charts and a page: which pairs, through which layers and tokens.

Reads records; knows no model. The page is one file; every text on it is escaped.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rahf.report.escaping import one_line, printable
from rahf.report.tables import markdown, with_ends

QUERIES_SHOWN = 50
"""Queries on the page, from the start of the file."""


def influence_table(record: Mapping[str, Any], unit: str, count: int) -> str:
    """Return the pairs that support a query most and those that oppose it most, as a table."""
    pairs = shown_pairs(record["pairs"], count)
    stages = list(pairs[0]["through"])
    rivals = [name for name in pairs[0]["ranks"] if name != "influence"]
    header = ["pair", f"change without it ({unit})"]
    header += [f"through {stage}" for stage in stages] if len(stages) > 1 else []
    header += [*(f"rank: {name}" for name in rivals), "self-influence", ""]
    rows = [
        [
            str(pair["row"]),
            f"{pair['change']:+.3g}",
            *([f"{pair['through'][stage]:+.3g}" for stage in stages] if len(stages) > 1 else []),
            *(str(pair["ranks"][name]) for name in rivals),
            f"{pair['self_influence']:.2g}",
            "spurious?" if pair["spurious"] else "",
        ]
        for pair in pairs
    ]
    return markdown(header, rows)


def shown_pairs(pairs: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Return the first and the last `count` of a query's pairs."""
    return list(pairs) if len(pairs) <= 2 * count else [*pairs[:count], *pairs[-count:]]


def summary_text(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """Return concentration, agreement with the rivals and notes, as text."""
    return "\n\n".join([_summary_tables(summary, records), *_notes(summary)])


def _summary_tables(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            one_line(record["query"], 60),
            f"{record['value']:.2f}",
            f"{record['largest']:.2g}",
            f"{record['top_1_percent_share']:.0%}",
            _tail(record["tail"]),
        ]
        for record in records[:QUERIES_SHOWN]
    ]
    columns = ["query", "value", f"largest ({summary['unit']})", "top 1 % hold", "tail exponent"]
    found = [[name, _estimate(each)] for name, each in summary["agreement"].items()]
    rivals = markdown(["rival ranking", "Spearman with influence"], found)
    return f"{markdown(columns, rows)}\n\n{rivals}"


def _notes(summary: Mapping[str, Any]) -> list[str]:
    return [f"note: {note}" for note in summary["notes"]]


def _tail(tail: Mapping[str, float] | None) -> str:
    if tail is None:
        return "too few pairs"
    refused = ", no power law" if tail["p_value"] < 0.1 else ""
    return f"{tail['exponent']:.2f} (KS {tail['ks']:.2f}, p {tail['p_value']:.2f}{refused})"


def _estimate(each: Mapping[str, float] | None) -> str:
    return "constant" if each is None else with_ends(each, "+.2f")


def validation_text(found: Mapping[str, Any]) -> str:
    """Return the tables of a validation."""
    steps = found["steps"]
    parts = [
        f"{found['curvature']}: {found['cpu_seconds']:.0f} CPU seconds to fit and score",
        f"finite differences of the largest {steps['pairs']} pairs: correlation "
        f"{steps['correlation']:.3f}, slope {steps['slope']:.3f}",
    ]
    if "datamodelling" in found:
        rows = [[name, _estimate(each)] for name, each in found["datamodelling"].items()]
        parts.append(markdown(["ranking", "linear datamodelling score"], rows))
    if "leave_out" in found:
        rows = [
            [name, f"{each['predicted']:+.3g}", _estimate(each["measured"])]
            for name, each in found["leave_out"].items()
        ]
        parts.append(markdown(["without", "predicted change", "measured"], rows))
    if "flips" in found:
        rows = [[name, _estimate(each)] for name, each in found["flips"]["auc"].items()]
        parts.append(markdown(["ranking", "AUC of flipped pairs"], rows))
    return "\n\n".join(parts)


def cleaning_table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the held-out accuracy and margin of each arm and whether the accuracy rises."""
    rows = []
    for name, arm in arms.items():
        gained, changed = arm["gained"], bool(arm["rows"])
        known = gained["low"] is not None
        better, worse = known and gained["low"] > 0, known and gained["high"] < 0
        verdict = "better" if better else "worse" if worse else "open"
        row = [name, str(len(arm["rows"])), _share(arm["accuracy"])]
        row += [_estimate(gained), verdict] if changed else ["-", ""]
        row += [_estimate(arm["margin"]), _estimate(arm["margin_gained"]) if changed else "-"]
        rows.append(row)
    header = ["arm", "pairs changed", "held-out accuracy", "against all pairs", "verdict"]
    return markdown([*header, "margin (nats/token)", "against all pairs"], rows)


def _share(each: Mapping[str, float]) -> str:
    return with_ends(each, ".1%")


def influence_chart(
    summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Draw the histogram over layers and the rank curves of the queries."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    layers, ranks = figure.subplots(1, 2)
    width = 0.8 / max(1, len(summary["layers"]))
    for place, (stage, shares) in enumerate(summary["layers"].items()):
        places = [int(layer) + width * place for layer in shares]
        layers.bar(places, list(shares.values()), width, label=stage)
    layers.set(xlabel="layer", ylabel="share of |change|", title="where the influence is")
    layers.legend(fontsize="small")
    for record in records[:QUERIES_SHOWN]:
        curve = [(rank, size) for rank, size in record["curve"] if size > 0]
        if curve:
            ranks.loglog(*zip(*curve, strict=True), lw=1, alpha=0.6)
    title = "size by rank, one line per query"
    ranks.set(xlabel="rank of the pair", ylabel=f"|change| ({summary['unit']})", title=title)
    figure.savefig(path, dpi=120)


def influence_page(
    title: str,
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    chart: Path,
    count: int,
) -> str:
    """Return one self-contained HTML file: the charts, and each query with its pairs in colour."""
    image = base64.b64encode(chart.read_bytes()).decode()
    shown = records[:QUERIES_SHOWN]
    left = len(records) - len(shown)
    page = "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>",
            f"<body><h1>{escape(title)}</h1><p>{LEGEND}</p>",
            f"<pre>{escape(_summary_tables(summary, records))}</pre>",
            *(f"<p>{escape(note)}</p>" for note in _notes(summary)),
            f"<img alt='layers and rank curves' src='data:image/png;base64,{image}'>",
            *(_query(record, summary["unit"], count) for record in shown),
            f"<p>{left} more in queries.jsonl</p>" if left else "",
            "</body></html>\n",
        ]
    )
    return printable(page)


STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
pre { overflow-x: auto; font-size: 12px; line-height: 1.4; }
img { max-width: 100%; }
h3 { margin: 1.2rem 0 0; font-size: 1rem; }
.r { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .6rem; }
.n { color: #666; font-size: 85%; }
"""

LEGEND = (
    "A change is what the query would gain if the pair were left out of the training, to first "
    "order; a pair with a negative change supports the query. In the token maps "
    "<span style='background:#9ecae1'>blue</span> tokens support it and "
    "<span style='background:#fdae6b'>orange</span> ones oppose it. <i>Update position</i>: whose "
    "activations the weights were moved along; <i>output token</i>: whose prediction or hidden "
    "state the loss reads. Point at a token for its share."
)


def _query(record: Mapping[str, Any], unit: str, count: int) -> str:
    table = escape(influence_table(record, unit, count))
    parts = [f"<h2>{escape(record['query'])}</h2><pre>{table}</pre>"]
    for pair in shown_pairs(record["pairs"], count):
        parts += [_detail(pair, detail, unit) for detail in pair.get("details", ())]
    return "\n".join(parts)


def _detail(pair: Mapping[str, Any], detail: Mapping[str, Any], unit: str) -> str:
    sides = ", ".join(f"{side} {change:+.2g}" for side, change in detail["sides"].items())
    head = f"pair {pair['row']} through {detail['stage']}: {sides} {unit}"
    parts = [f"<h3>{escape(head)}</h3>"]
    for row in detail["rows"]:
        for kind, name in (("update", "update position"), ("output", "output token")):
            tokens = zip(row["pieces"], row[kind], strict=True)
            largest = max(map(abs, row[kind]), default=0.0) or 1.0
            spans = "".join(_span(piece, change, largest) for piece, change in tokens)
            parts.append(f"<div class='n'>{escape(row['side'])}, by {name}</div>")
            parts.append(f"<p class='r'>{spans}</p>")
    return "\n".join(parts)


def _span(piece: str, change: float, largest: float) -> str:
    colour = "158,202,225" if change < 0 else "253,174,107"
    strength = abs(change) / largest
    shown = piece if piece.strip() else piece.replace("\n", "⏎\n")
    style = f"background:rgba({colour},{strength:.2f})"
    return f"<span style='{style}' title='{change:+.3g}'>{escape(shown)}</span>"
