"""`rahf export`: an adapter or directions in the form that another runtime loads."""

import argparse
from pathlib import Path

FORMATS = ("adapter", "merged", "safetensors", "gguf")

EPILOG = """\
Of an adapter: adapter (PEFT), merged (transformers; compared with the adapter before it is kept).
Of directions: safetensors (rahf), gguf (control vector of llama.cpp)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    option("source", metavar="FOLDER", type=Path, help="adapter or directions")
    option("--output", required=True, metavar="FOLDER", type=Path, help="where it is written")
    option(
        "--formats",
        metavar="A,B",
        type=_formats,
        help=f"formats, of {', '.join(FORMATS)} (default: all that apply)",
    )
    option("--base", metavar="NAME", help="base in place of the one that the adapter names")
    option(
        "--dtype", default="auto", help="dtype of the merged weights (default: that of the base)"
    )
    option(
        "--alpha",
        metavar="X",
        type="strength",
        default=1.0,
        help="factor of the directions (default: 1)",
    )
    option("--layers", metavar="LAYERS", help="layers of the directions, as target_layers")
    option(
        "--increments",
        action="store_true",
        help="write directions so that, added in all layers, each shifts its own layer only",
    )


def run(options: argparse.Namespace) -> int:
    from rahf.artifacts import alone
    from rahf.export.formats import export
    from rahf.records.command_line import write_result

    with alone(options.output, wait=False):
        for line in export(options):
            print(line)
        names = ("source", "formats", "base", "dtype", "alpha", "layers", "increments")
        given = {name: getattr(options, name) for name in names} | {"source": str(options.source)}
        write_result(options.output / "export.json", options.command, given)
    return 0


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(FORMATS)}")
    return names
