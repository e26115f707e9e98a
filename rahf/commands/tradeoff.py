"""`rahf tradeoff`: methods side by side, change of behaviour against loss of general ability."""

import argparse
from pathlib import Path

from rahf.commands.parsers import plain_command

EPILOG = """\
POINTS holds one record for each strength of each method: method, strength, cost (general ability
lost against the base), change (of behaviour, as judged), and low and high, the interval of that.
The change at an equal loss is read off the line between two strengths; it is not given where even
a method's strongest setting loses less."""


def add(commands) -> None:
    summary = "tell how much change each method brings at an equal loss of ability"
    parser = plain_command(commands, "tradeoff", summary, run, EPILOG)
    parser.add_argument("points", metavar="POINTS", type=Path, help="jsonl, json or csv of points")
    option = parser.add_argument
    option("--costs", default="0.02,0.05,0.1", metavar="A,B", help="losses (0.02,0.05,0.1)")
    option("--figure", metavar="FILE", type=Path, help="chart to draw (.png, .svg, .pdf)")


def run(options: argparse.Namespace) -> int:
    from rahf.data.records import read_records
    from rahf.report.tradeoff import points_of, tradeoff_figure, tradeoff_table

    records = list(read_records(options.points))
    numbers = ("cost", "change", "low", "high")  # a csv gives text
    for _, record in records:
        record.update({name: float(record[name]) for name in numbers if name in record})
    methods = points_of(records)
    print(tradeoff_table(methods, [float(cost) for cost in options.costs.split(",")]))
    if options.figure is not None:
        tradeoff_figure(methods, options.figure)
    return 0
