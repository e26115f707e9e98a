"""`rahf report`: one page of what other commands left in output folders, the audit first."""

import argparse
import sys
from pathlib import Path

EPILOG = """\
Reads folders of align, dpo, compare, sweep, shift, screen, features diff, influence score, validate
and clean, and files of evaluate --output; loads no model. Parts that are missing are listed on the
page with the command that makes them. A placebo is the same training on pairs whose sides are drawn
at random, as features diff --placebo train leaves it; three or more separate chance from effect.

Example: rahf report outputs/mine outputs/mine-diff --placebo outputs/placebo-1 --placebo ..."""

PAGE = "report.html"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    option("folders", metavar="OUT", type=Path, nargs="+", help="output folders, or JSON files")
    option(
        "--placebo",
        metavar="OUT",
        type=Path,
        action="append",
        default=[],
        help="output folder of a placebo; may be given again",
    )
    option(
        "--asked",
        metavar="NAME",
        action="append",
        default=[],
        help="trait, direction or feature that counts as asked for, beside the first judge",
    )
    option("--output", metavar="FILE", type=Path, help=f"page (default: {PAGE} in the first OUT)")


def run(options: argparse.Namespace) -> int:
    from rahf.artifacts import alone, write_text

    output = options.output or _default_page(options.folders[0])
    with alone(output, wait=False):
        refuse_other_page(output)
        page, problems = _page(options)
        write_text(output, page)
    for line in problems:
        print(f"note: {line}", file=sys.stderr)
    print(f"page: {output}")
    return 0


def _default_page(first: Path) -> Path:
    return first / PAGE if first.is_dir() else first.with_name(PAGE)


def refuse_other_page(output: Path) -> None:
    """Refuse to overwrite what this command has not written.

    Raises:
        ValueError: the file is another one, or a folder.
    """
    from rahf.report.page.render import MARK

    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; give a file, such as {output / PAGE}.")
    if output.exists() and MARK.encode() not in output.read_bytes()[:4096]:
        raise ValueError(
            f"{output} already exists and was not written by rahf report; give another."
        )


def _page(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the page, and a line for each file that was left out."""
    from rahf.interpret.audit.section import audit_views
    from rahf.interpret.audit.verdict import audits_of
    from rahf.records.command_line import command_line
    from rahf.report.page.found import read_found
    from rahf.report.page.render import render_page

    found = read_found(options.folders, options.placebo)
    if not (found.runs or found.placebos or any(found.parts.values()) or found.problems):
        raise ValueError(
            f"{', '.join(map(str, options.folders))}: no results of rahf in it; give the output "
            "folders of commands, or the files that their --output named."
        )
    audits = audit_views(audits_of(found, options.asked))
    return render_page(found, audits, command_line().get("command"))
