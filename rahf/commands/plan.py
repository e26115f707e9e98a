"""`rahf plan`: what a recipe will cost."""

import argparse
from pathlib import Path

from rahf.commands.options.parsers import launch_options


def add_options(parser: argparse.ArgumentParser) -> None:
    launch_options(parser)
    option = parser.add_argument
    option(
        "--device_memory",
        metavar="GIB",
        type="positive number",
        help="memory of a device, in GiB; what does not fit is refused",
    )
    option("--rows", metavar="N", type="count", help="training rows, where they cannot be counted")
    option(
        "--mean_tokens",
        metavar="N",
        type="positive number",
        help="tokens of a row, padding included",
    )
    option("--model_config", metavar="FILE", type=Path, help="config.json in place of the model's")
    option("--json", action="store_true", help="print figures as JSON; bytes, not GiB")


def run(recipe, options: argparse.Namespace) -> int:
    from rahf.plan.command import PlanOptions, plan

    chosen = PlanOptions(**{name: getattr(options, name) for name in PlanOptions._fields})
    text, refusal = plan(recipe, chosen, as_json=options.json)
    print(text)
    if refusal is not None:
        raise refusal
    return 0
