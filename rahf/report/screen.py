"""The forecast of a data set as a table and as one self-contained page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rahf.report.escaping import one_line, printable
from rahf.report.tables import markdown, with_ends

COLOURS = {"will rise": "#e6550d", "will fall": "#3182bd", "no sign": "#999999"}
WIDTH, HEIGHT, LABEL = 640, 26, 150  # of the chart: pixels in all, of a row, of its name

LEGEND = (
    "The effect is how much further along a direction the hidden states of what is trained on are "
    "than those it replaces, in units of the direction: 1 is the distance between the two sides "
    "that it was fitted to. The grey band holds 95 % of random directions of equal norm. A verdict "
    "needs an effect that neither prompts nor directions drawn by chance explain, at a false "
    "discovery rate of 5 % over the bank. It forecasts which way a trait moves, not how far."
)


def screen_table(summary: Mapping[str, Any]) -> str:
    """Return one row per direction: verdict, effect, both nulls, and what texts alone show."""
    header = ["name", "verdict", "effect", "random directions", "shuffled sides", "q"]
    header += ["words", "classifier"]
    rows = [
        [
            name,
            each["verdict"],
            with_ends(each, "+.3f"),
            _band(each["random"]),
            _band(each["shuffled"]),
            f"{each['q']:.2g}",
            *(_text_figure(each["texts"].get(kind)) for kind in ("words", "classifier")),
        ]
        for name, each in summary["directions"].items()
    ]
    characters = with_ends(summary["characters"], "+.0f")
    read = f"{summary['kind']}: {summary['rows']} rows, {summary['prompts']} prompts"
    return f"{markdown(header, rows)}\n\n{read}; difference in characters {characters}"


def _band(ends: Sequence[float]) -> str:
    return f"[{ends[0]:+.3f}, {ends[1]:+.3f}]"


def _text_figure(each: Mapping[str, Any] | None) -> str:
    """Return a mean with its interval, marked where its own p is at most 0.05."""
    if each is None:
        return "-"
    mark = "*" if each["p"] <= 0.05 else ""
    return with_ends(each, "+.3f") + mark


def screen_page(
    title: str, summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> str:
    """Return one HTML file: the table, a chart, and the rows that carry each direction."""
    known = {record["row"]: record for record in records}
    page = "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>",
            f"<body><h1>{escape(title)}</h1><p>{escape(LEGEND)}</p>",
            f"<pre>{escape(screen_table(summary))}</pre>",
            "<p>A star marks a difference of the texts whose p value is at most 0.05.</p>",
            _chart(summary),
            *(
                _direction(name, each, known)
                for name, each in summary["directions"].items()
            ),
            "</body></html>\n",
        ]
    )  # fmt: skip
    return printable(page)


STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
pre { overflow-x: auto; font-size: 12px; line-height: 1.4; }
blockquote { margin: 1rem 0 .2rem; padding-left: .8rem; border-left: 3px solid #bbb;
             white-space: pre-wrap; color: #444; }
.r { white-space: pre-wrap; overflow-wrap: anywhere; margin: .1rem 0 .3rem; }
.n { color: #666; font-size: 85%; }
"""


def _chart(summary: Mapping[str, Any]) -> str:
    """Return effects with their intervals, over the band of random directions, as SVG."""
    found = summary["directions"]
    ends = [
        abs(value)
        for each in found.values()
        for value in (each["mean"], each["low"], each["high"], *each["random"])
        if value is not None
    ]
    half = (WIDTH - LABEL) / 2
    scale = (half - 10) / (max(ends) or 1.0)

    def at(value: float) -> float:
        return LABEL + half + scale * value

    lines = [_line(number, name, each, at) for number, (name, each) in enumerate(found.items())]
    tall = HEIGHT * len(found)
    axis = f"<line x1='{at(0):.1f}' x2='{at(0):.1f}' y1='0' y2='{tall}' stroke='#000'/>"
    return (
        f"<svg role='img' aria-label='effect by direction' width='{WIDTH}' height='{tall}' "
        f"font-size='13'>{''.join(lines)}{axis}</svg>"
    )


def _line(number: int, name: str, each: Mapping[str, Any], at) -> str:
    middle = HEIGHT * number + HEIGHT / 2
    low, high = at(each["random"][0]), at(each["random"][1])
    colour = COLOURS[each["verdict"]]
    parts = [
        f"<text x='0' y='{middle + 4:.1f}'>{escape(one_line(name, 20))}</text>",
        f"<rect x='{low:.1f}' y='{middle - 8:.1f}' width='{high - low:.1f}' height='16' "
        "fill='#e5e5e5'/>",
        f"<circle cx='{at(each['mean']):.1f}' cy='{middle:.1f}' r='4' fill='{colour}'/>",
    ]
    if each["low"] is not None:
        parts.append(
            f"<line x1='{at(each['low']):.1f}' x2='{at(each['high']):.1f}' y1='{middle:.1f}' "
            f"y2='{middle:.1f}' stroke='{colour}' stroke-width='2'/>"
        )
    return "".join(parts)


def _direction(name: str, each: Mapping[str, Any], known: Mapping[int, Mapping[str, Any]]) -> str:
    parts = [f"<h2>{escape(name)}: {each['verdict']}</h2><p class='n'>Rows that carry it:</p>"]
    for number in each["rows"]:
        record = known[number]
        asked = one_line(record["prompt"][-1]["content"])
        effect = record["effects"][name]
        parts.append(
            f"<blockquote>{escape(asked)}</blockquote>"
            f"<div class='n'>row {number}, effect {effect:+.3f}</div>"
            f"<div class='r'><b>towards</b> {escape(one_line(record['towards']))}</div>"
            f"<div class='r'><b>from</b> {escape(one_line(record['from']))}</div>"
        )
    return "\n".join(parts)
