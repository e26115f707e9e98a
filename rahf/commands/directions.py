"""`rahf directions`: fit one direction per layer and measure it, or read those of a GGUF file."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rahf.commands.options.explanations import explanations_option, read_explained
from rahf.records.makers import makers, refuse_other_maker

FITS = ("mean", "principal", "probe")

FITTING = ("source", "tokens", "fit", "layers", "positive", "negative", "rows", "compare")
FITTING += ("effect", "effect_pairs", "explanations")
"""Options that have no effect on finished directions."""

FROM = "rahf directions --from"


class _OfItsOwn(argparse.Action):
    """An option with which the result is of another command than a fit of the recipe's pairs."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values)
        namespace.command = f"rahf directions {option_string}"


def add_options(parser: argparse.ArgumentParser) -> None:
    _what_is_fitted(parser.add_argument)
    _what_is_measured(parser.add_argument)
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="folder of the directions (default: output_dir/reading/SOURCE)",
    )
    explanations_option(parser)
    parser.add_argument(
        "--from",
        action=_OfItsOwn,
        dest="from_file",
        metavar="FILE.gguf",
        type=Path,
        help="fit nothing: read a control vector of llama.cpp, check it against the model",
    )
    parser.set_defaults(unset={name: parser.get_default(name) for name in (*FITTING, "bank")})


def _what_is_fitted(option: Callable[..., object]) -> None:
    option(
        "--bank",
        action=_OfItsOwn,
        metavar="FILE",
        nargs="?",
        const="",
        help="fit every direction of a bank from the model's own answers, without the recipe's "
        "pairs: a YAML file, or alone the bank that comes with rahf (length, refusal, sycophancy, "
        "formality, tone, certainty, lists)",
    )
    option(
        "--source",
        choices=("responses", "instructions", "adapters"),
        default="responses",
        help="chosen against rejected responses; one response under the recipe's two instructions; "
        "one response under two adapters (default: responses)",
    )
    option(
        "--tokens",
        choices=("last", "mean", "every"),
        default="mean",
        help="states of a response: its last token, their mean, or every token (default: mean)",
    )
    option("--fit", choices=FITS, default="mean", help="what is saved (default: mean)")
    option("--layers", metavar="LAYERS", help="blocks, as target_layers (default: all)")
    option("--positive", metavar="FOLDER", help="adapter of the positive side, or base")
    option("--negative", metavar="FOLDER", help="adapter of the negative side, or base")
    option("--rows", metavar="N", type="count", help="fit on N pairs, drawn by the seed")


def _what_is_measured(option: Callable[..., object]) -> None:
    option(
        "--compare",
        metavar="FIT,FIT",
        type=_fits,
        default=FITS,
        help="fits in the table beside it, or none; principal and probe need a matrix of d_model x "
        "d_model per layer (default: all)",
    )
    option(
        "--effect",
        metavar="LAYERS",
        help="with --source adapters: how much of the adapter's effect on predictions the vectors "
        "of these layers explain, one by one and together",
    )
    option(
        "--effect_pairs",
        metavar="N",
        type="count",
        default=16,
        help="held-out pairs that the effect is measured on (default: 16)",
    )


def run(recipe, options: argparse.Namespace) -> int:
    if options.from_file is not None:
        return _take_over(recipe, options)
    if options.bank is not None:
        return _fit_bank(recipe, options)
    from rahf.pipeline.read_directions import ReadingOptions, read_directions

    chosen = {name: getattr(options, name) for name in ReadingOptions._fields}
    explained = read_explained(options.explanations) if options.explanations else None
    folder = options.output or recipe.output_dir / "reading" / options.source
    _refuse_foreign(folder, options.command)
    read_directions(recipe, ReadingOptions(**chosen))
    if explained is not None:
        print(f"\n{_explained(options.explanations, explained[0], folder)}")
    return 0


def _take_over(recipe, options: argparse.Namespace) -> int:
    """Write the directions of another program's file to the folder of the reading."""
    from dataclasses import replace

    from rahf.artifacts import alone, identity_of
    from rahf.export.checks import check_directions
    from rahf.export.gguf import read_control_vector
    from rahf.records.command_line import write_result

    _refuse_others(options, "from", (*FITTING, "bank"))
    path: Path = options.from_file
    if not path.is_file():
        raise ValueError(f"--from: there is no file {path} (working directory: {Path.cwd()}).")
    read = read_control_vector(path)
    metadata = {**read.metadata, "model": recipe.model.model_name_or_path}
    unchecked = check_directions(path, read.layers, read.vectors, metadata)
    if unchecked is not None:
        print(f"note: {unchecked}", file=sys.stderr)
    if options.output is None and path.stem.startswith("."):
        raise ValueError(
            f"--from {path}: its name gives no name of a folder; give --output FOLDER."
        )
    folder = options.output or recipe.output_dir / "reading" / path.stem
    with alone(folder, wait=False):
        _refuse_foreign(folder, FROM)
        record = {"file": str(path), "content": identity_of(path)}
        write_result(folder / "control_vector.json", FROM, record)
        written = replace(read, metadata=metadata).save(folder)
    shown = ", ".join(map(str, read.layers))
    print(f"{written}: layers {shown}, of width {read.vectors.shape[1]}, to be added in each layer")
    return 0


def _refuse_foreign(folder: Path, command: str) -> None:
    """Refuse a folder with directions that the command has not written."""
    from rahf.directions.vectors import FILE_NAME

    refuse_other_maker(folder, command)
    if (folder / FILE_NAME).exists() and command not in makers(folder):
        raise ValueError(
            f"{folder / FILE_NAME} is there, and not from `{command}`: it is not replaced. Give "
            "another --output, or delete it."
        )


def _refuse_others(options: argparse.Namespace, given: str, names: tuple[str, ...]) -> None:
    """Refuse options that `--given` does not read."""
    others = [name for name in names if getattr(options, name) != options.unset[name]]
    if others:
        raise ValueError(f"--{given} does not read --{' or --'.join(others)}: omit them.")


def _fit_bank(recipe, options: argparse.Namespace) -> int:
    from rahf.directions.bank import own_bank
    from rahf.pipeline.bank import fit_bank_of_recipe
    from rahf.recipe.direction_files import BANK

    _refuse_others(options, "bank", tuple(name for name in FITTING if name != "layers"))
    bank = Path(options.bank) if options.bank else own_bank()
    fit_bank_of_recipe(recipe, bank, options.layers, options.output or recipe.output_dir / BANK)
    return 0


def _explained(path: Path, lines: list[dict], folder: Path) -> str:
    """Return the explanation of each layer's direction, as far as they are of these vectors."""
    from rahf.artifacts import read_object
    from rahf.directions.vectors import Directions
    from rahf.report.explanations import layers_explained

    directions = Directions.load(folder)
    record = read_object(path.with_name(f"{path.name}.run.json"), settings=dict)["settings"]
    same = record.get("explained", record).get("fingerprint") == directions.fingerprint()
    if not same:
        print(
            f"note: {path} explains other directions than these: run rahf features explain "
            f"--directions {folder}",
            file=sys.stderr,
        )
    known = {line["number"]: line for line in lines if line["kind"] == "vector" and same}
    return layers_explained(directions.layers, known)


def _fits(text: str) -> tuple[str, ...]:
    names = () if text == "none" else tuple(text.split(","))
    unknown = [name for name in names if name not in FITS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(FITS)}, none")
    return names
