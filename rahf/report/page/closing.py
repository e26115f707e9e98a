"""What ends the blocks of a result on the page: what is left out, and the command that made it."""

from rahf.report.page.blocks import Command, Text
from rahf.report.page.figures import left_out
from rahf.report.page.reading import Part


def closing(part: Part, shown: int = 0, file: str = "", what: str = "") -> list[Text | Command]:
    """Return a line on the records that the page leaves out, if any, and the command.

    Args:
        shown: number of the records on the page.
        file: that holds all of them, beside the figures.
        what: the records are, in the plural.
    """
    left = left_out(len(part.records), shown, part.path.with_name(file), what) if file else ""
    return [*([Text(left, "note")] if left else []), Command("made by", part.command)]
