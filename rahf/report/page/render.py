"""The sections of a page -> one HTML file: no script, no request, every text escaped.

Control characters and marks of direction in texts of data are shown as escapes.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rahf.report.escaping import printable
from rahf.report.page.blocks import Section
from rahf.report.page.found import Found
from rahf.report.page.influence_sections import (
    cleaning_section,
    influence_section,
    validation_section,
)
from rahf.report.page.looking_sections import comparison_section, features_section, shift_section
from rahf.report.page.measured_sections import (
    judged_section,
    preferences_section,
    screen_section,
    sweep_section,
    tasks_section,
)
from rahf.report.page.missing import missing_parts
from rahf.report.page.reading import Part, Reader
from rahf.report.page.run_sections import (
    guards_section,
    layers_section,
    made_section,
    results_section,
)

MARK = '<meta name="generator" content="rahf report">'
"""By which a page of an earlier run is known: it may be overwritten."""


def render_page(found: Found, audits: Sequence[Any], command: str | None) -> tuple[str, list[str]]:
    """Return the page, and a line for each file that it leaves out.

    Args:
        audits: views of the audit, a training each.
        command: that makes the page.
    """
    reader = Reader()
    sections = [section for section in _sections(found, reader) if section]
    problems = list(dict.fromkeys([*found.problems, *reader.problems]))
    title = ", ".join(str(run.folder) for run in found.runs) or "results"
    page = (
        _environment()
        .get_template("page.html")
        .render(
            title=f"What changed in {title}",
            mark=Markup(MARK),
            audits=audits,
            sections=sections,
            missing=missing_parts(found),
            problems=problems,
            command=command,
        )
    )
    return page, problems


def _sections(found: Found, reader: Reader) -> list[Section | None]:
    """Return the sections; a result that cannot be shown is left out and named."""
    runs = found.runs

    def of_parts(build, parts: Sequence[Part]) -> Section | None:
        shown = [part for part in parts if reader.kept(part.path, lambda part=part: build([part]))]
        return build(shown)

    def of_runs(build) -> Section | None:
        shown = [run for run in runs if reader.kept(run.folder, lambda run=run: (build([run]), 1))]
        return build(shown)

    def points(parts: Sequence[Part]) -> Section | None:
        return comparison_section(parts, _points(parts, reader))

    def of_command(build, command: str) -> Section | None:
        return of_parts(build, found.parts[f"rahf {command}"])

    return [
        of_runs(made_section),
        of_command(points, "compare"),
        of_command(sweep_section, "sweep"),
        of_runs(layers_section),
        of_runs(results_section),
        of_command(judged_section, "evaluate responses"),
        of_command(preferences_section, "evaluate preferences"),
        of_command(tasks_section, "evaluate tasks"),
        of_command(shift_section, "shift"),
        of_command(features_section, "features diff"),
        of_command(influence_section, "influence score"),
        of_command(validation_section, "influence validate"),
        of_command(cleaning_section, "influence clean"),
        of_command(screen_section, "screen"),
        of_runs(guards_section),
    ]


def _points(parts: Sequence[Part], reader: Reader) -> dict[int, list[dict[str, Any]]]:
    """Return the points of the chart of each comparison."""
    fields = dict.fromkeys(("cost", "change", "low", "high"), (int, float))
    return {
        place: reader.lines(part.path.with_name("points.jsonl"), method=str, **fields)
        for place, part in enumerate(parts)
    }


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )


def _visible(value: Any) -> Any:
    """Return a text with its hidden characters visible; markup of the templates is left as is."""
    if isinstance(value, Markup):
        return value
    return printable(value) if isinstance(value, str) else value
