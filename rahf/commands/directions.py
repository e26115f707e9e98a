"""`rahf directions`: fit one direction per layer, and show what it is worth."""

import argparse
from pathlib import Path

from rahf.commands.options.parsers import recipe_command

FITS = ("mean", "principal", "probe")


def add(commands) -> None:
    summary = "fit one direction per layer from a recipe's pairs, with the evidence for it"
    option = recipe_command(commands, "directions", summary, run).add_argument
    option(
        "--source",
        choices=("responses", "instructions", "adapters"),
        default="responses",
        help="chosen against rejected responses; one response under the recipe's two instructions; "
        "one response said by two adapters (default: responses)",
    )
    option(
        "--tokens",
        choices=("last", "mean", "every"),
        default="mean",
        help="states of a response: its last token, their mean, or every token (default: mean)",
    )
    option("--fit", choices=FITS, default="mean", help="what is saved (default: mean)")
    option(
        "--compare",
        metavar="FIT,FIT",
        type=_fits,
        default=FITS,
        help="fits in the table beside it, or none; principal and probe need a matrix of d_model x "
        "d_model per layer (default: all)",
    )
    option("--layers", metavar="LAYERS", help="blocks, as target_layers (default: all)")
    option("--positive", metavar="FOLDER", help="adapter of the positive side, or base")
    option("--negative", metavar="FOLDER", help="adapter of the negative side, or base")
    option("--rows", metavar="N", type=int, help="fit on so many pairs, drawn by the seed")
    option(
        "--effect",
        metavar="LAYERS",
        help="with --source adapters: how much of the adapter's effect on predictions the vectors "
        "of these layers explain, one by one and together",
    )
    option(
        "--effect_pairs",
        metavar="N",
        type=int,
        default=16,
        help="held-out pairs that the effect is measured on (default: 16)",
    )
    option("--output", metavar="FOLDER", type=Path, help="default: output_dir/reading/SOURCE")


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.files import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    from rahf.pipeline.fit_directions import ReadingOptions, read_directions

    chosen = {name: getattr(options, name) for name in ReadingOptions._fields}
    read_directions(recipe, ReadingOptions(**chosen))
    return 0


def _fits(text: str) -> tuple[str, ...]:
    names = () if text == "none" else tuple(text.split(","))
    unknown = [name for name in names if name not in FITS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(FITS)}, none")
    return names
