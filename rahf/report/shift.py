"""Token shift as a chart and as a page: responses with every token coloured by its rank in the
base's predictions.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from math import nan
from pathlib import Path
from typing import Any

from rahf.report.escaping import printable, visible_token
from rahf.report.tables import markdown, with_ends

SHARES = ("unshifted", "marginal", "shifted")
COLOURS = {"unshifted": "#9ecae1", "marginal": "#fdc470", "shifted": "#e6550d"}

RESPONSES_SHOWN = 100
"""Responses on the page, from the start of the file."""


def shift_table(summary: Mapping[str, Any]) -> str:
    """Return a markdown table: shares of all tokens, of each kind, of the ends of the text."""
    rows = [
        _row("all", summary),
        *(_row(kind, figures) for kind, figures in summary["by_kind"].items()),
        _row("end of text", summary["end_of_text"]),
    ]
    header = ["tokens", "number", *SHARES, "KL (nats)", "aligned model's first choice"]
    return markdown(header, [row for row in rows if row])


def _row(name: str, figures: Mapping[str, Any]) -> list[str]:
    if not figures["tokens"]:
        return []
    return [
        name,
        str(figures["tokens"]),
        *(with_ends(figures[share], ".1%") for share in SHARES),
        with_ends(figures["kl"], ".3f"),
        f"{figures['aligned_first_choice']:.0%}",
    ]


def top_table(summary: Mapping[str, Any], count: int = 20) -> str:
    """Return the tokens that shift most often, as a markdown table."""
    header = ["token", "kind", "shifted", "of", "KL (nats)", "base's choice"]
    rows = [
        [
            visible_token(row["token"]),
            row["kind"],
            str(row["shifted"]),
            str(row["occurrences"]),
            f"{row['kl']:.2f}",
            visible_token(row["base_would_say"]),
        ]
        for row in summary["top_shifted"][:count]
    ]
    return markdown(header, rows) if rows else "no token is shifted"


def shift_chart(summary: Mapping[str, Any], path: Path) -> None:
    """Draw shares and KL over positions, and the shares of each kind of token."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    shares, divergence, kinds = figure.subplots(1, 3)
    ranges = summary["by_position"]
    names = [_range(part) for part in ranges]
    _stack(shares, names, ranges)
    shares.set(
        xlabel="position in the response", ylabel="share of tokens", title="rank in the base"
    )
    shares.legend(loc="lower left", fontsize="small")
    means = [part["kl"]["mean"] for part in ranges]
    places = [*zip(ranges, means, strict=True)]
    errors = [
        [nan if part["kl"][end] is None else abs(part["kl"][end] - mean) for part, mean in places]
        for end in ("low", "high")
    ]
    divergence.errorbar(names, means, errors, fmt="o-", capsize=2)
    divergence.set(xlabel="position in the response", ylabel="nats", title="KL(aligned || base)")
    divergence.set_ylim(0, None)
    found = {kind: part for kind, part in summary["by_kind"].items() if part["tokens"]}
    _stack(kinds, [f"{kind}\n{part['tokens']}" for kind, part in found.items()], found.values())
    kinds.set(ylabel="share of tokens", title="by kind of token")
    for axes in (shares, divergence):
        axes.tick_params(axis="x", rotation=60)
    figure.savefig(path, dpi=120)


def _range(part: Mapping[str, Any]) -> str:
    return str(part["first"]) + (f"-{part['last']}" if part["last"] > part["first"] else "")


def _stack(axes, names: Sequence[str], parts) -> None:
    below = [0.0] * len(names)
    for share in SHARES:
        heights = [part[share]["mean"] for part in parts]
        axes.bar(names, heights, bottom=below, color=COLOURS[share], label=share)
        below = [low + height for low, height in zip(below, heights, strict=True)]


def shift_page(
    title: str,
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    chart: Path,
) -> str:
    """Return one self-contained HTML file: the chart, tables, and the responses in colour."""
    image = base64.b64encode(chart.read_bytes()).decode()
    shown = records[:RESPONSES_SHOWN]
    left = len(records) - len(shown)
    page = "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>",
            f"<body><h1>{escape(title)}</h1>",
            f"<p>{LEGEND}</p>",
            f"<pre>{escape(shift_table(summary))}</pre>",
            f"<img alt='shares and KL by position and kind' src='data:image/png;base64,{image}'>",
            f"<h2>Tokens that shift most often</h2><pre>{escape(top_table(summary))}</pre>",
            "<h2>Responses</h2>",
            *(_response(record) for record in shown),
            f"<p>{left} more in shift.jsonl</p>" if left else "",
            "</body></html>\n",
        ]
    )
    return printable(page)


STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
pre { overflow-x: auto; font-size: 12px; line-height: 1.4; }
img { max-width: 100%; }
blockquote { margin: 1.5rem 0 .3rem; padding-left: .8rem; border-left: 3px solid #bbb;
             white-space: pre-wrap; color: #444; }
.r { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 1rem; }
.m { background: #fdc470; }
.s { background: #f4845f; text-decoration: underline; }
.e { border: 1px solid #666; border-radius: 3px; padding: 0 .2em; font-size: 80%; }
"""

LEGEND = (
    "A token without colour is the base's choice too (rank 1 in its predictions); "
    "<span class='m'>marginal</span>: rank 2 or 3; <span class='s'>shifted</span>: beyond. "
    "Point at a token for its rank, the KL divergence of the two predictions, and the base's own "
    "choice. Shares count tokens before the end of the text; intervals (95 %) are over responses."
)

CLASSES = {"unshifted": "", "marginal": "m", "shifted": "s"}


def _response(record: Mapping[str, Any]) -> str:
    fields = ("pieces", "kind", "bucket", "base_rank", "kl", "base_choice")
    tokens = zip(*(record[name] for name in fields), strict=True)
    spans = "".join(_span(*token) for token in tokens)
    return f"<blockquote>{escape(record['prompt'])}</blockquote><p class='r'>{spans}</p>"


def _span(piece: str, kind: str, bucket: str, rank: int, kl: float, choice: str) -> str:
    classes = " ".join(filter(None, (CLASSES[bucket], "e" if kind == "end" else "")))
    title = f"rank {rank}, KL {kl:.2f}, {kind}" + (
        f"; base: {visible_token(choice)}" if rank > 1 else ""
    )
    # A line break takes the colour of its token only where something of it is visible.
    shown = "end" if kind == "end" else piece if piece.strip() else piece.replace("\n", "⏎\n")
    attribute = f" class='{classes}'" if classes else ""
    return f"<span{attribute} title='{escape(title, quote=True)}'>{escape(shown)}</span>"
