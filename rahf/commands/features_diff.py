"""`rahf features diff`: what else changed between a base and its aligned model."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rahf.commands.options.dictionaries import dictionary_option, reading, with_tokens
from rahf.commands.options.explanations import (
    explanations_option,
    known_explanations,
    with_explanations,
)
from rahf.commands.options.held_out import held_out, held_out_options
from rahf.commands.options.models import content, identity, model_options

EPILOG = """\
Base and aligned model read the same held-out responses, with the adapter off and on. A feature has
moved where its mean activation changed (interval over prompts, false discoveries at 5 %) by more
than 95 % of the features change under a placebo: the same training on pairs whose sides are drawn
at random. --placebo train makes one with the adapter's own recipe, in FOLDER/placebo/adapter."""

TRAIN = "train"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    model_options(parser)
    dictionary_option(parser)
    held_out_options(parser)
    option(
        "--placebo",
        metavar="ADAPTER",
        action="append",
        default=[],
        help=f"adapter trained on shuffled pairs, or {TRAIN}; may be given again",
    )
    option(
        "--seed_of_adapter",
        metavar="ADAPTER",
        action="append",
        default=[],
        help="the same training with another seed; may be given again",
    )
    option("--top", metavar="N", type="count", default=20, help="features listed (default: 20)")
    option(
        "--seed", metavar="N", type="seed", default=0, help="seed of the pairs' sides (default: 0)"
    )
    option(
        "--batch_size", metavar="N", type="count", default=4, help="responses at once (default: 4)"
    )
    explanations_option(parser)
    option(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="folder for features.json, the table, the chart",
    )


def run(options: argparse.Namespace) -> int:
    from rahf.artifacts import alone

    _check(options)
    with alone(options.output, wait=False) if options.output else nullcontext():
        print(_shown(options))
    return 0


def _shown(options: argparse.Namespace) -> str:
    """Return the tables, and write them where a folder is given."""
    from rahf.artifacts import write_text
    from rahf.records.command_line import write_result
    from rahf.report.feature_movement import movement_figure, movement_tables

    placebos = _placebos(options)
    if TRAIN in options.placebo:
        _refuse_same_adapter(options, placebos)
    figures = {
        **identity(options),
        "made_from": content(options),
        "dictionary": options.dictionary,
        **_figures(options, placebos),
    }
    table = movement_tables(figures)
    if options.output is not None:
        write_result(options.output / "features.json", options.command, figures)
        write_text(options.output / "features.md", table + "\n")
        movement_figure(figures, options.output / "features.png")
    return table


def _figures(options: argparse.Namespace, placebos: list[Path]) -> dict:
    from rahf.interpret.features.held_out import find_movement, movement_figures
    from rahf.interpret.features.responses import HeldOut

    known = known_explanations(options)
    read = reading(options, differences=True)
    _check_adapter(options, read)
    rows = [HeldOut(*row) for row in held_out(options, read.tokenizer)]
    seeds = _put(read.model, options.seed_of_adapter, "seed")
    names = _put(read.model, placebos, "placebo")
    found = find_movement(
        read.model.eval(),
        read.dictionary,
        ("default", *seeds),
        rows,
        read.pad_token_id,
        placebos=[*names],
        special=read.tokenizer.all_special_ids,
        batch_size=options.batch_size,
    )
    directions = read.dictionary.directions
    figures = movement_figures(found, directions, ("default", *seeds), [*names], options.top)
    figures["features"] = with_explanations(with_tokens(figures["features"], read), known)
    prompts = sorted({row.digest for row in rows})
    return {"adapters": {**seeds, **names}, "prompts_read": prompts, **figures}


def _check(options: argparse.Namespace) -> None:
    """Refuse what is wrong before anything is loaded or trained."""
    if TRAIN in options.placebo and options.output is None:
        raise ValueError(
            f"--placebo {TRAIN} writes an adapter: give --output, below which it is kept."
        )
    _refuse_same_adapter(options, options.placebo)


def _refuse_same_adapter(options: argparse.Namespace, placebos: Sequence[str | Path]) -> None:
    """Refuse an adapter that is given twice, whatever its folder: it would confirm itself.

    Raises:
        ValueError: two of --model, --seed_of_adapter and --placebo have the same weights.
    """
    from rahf.models.adapter_files import weights_hash

    given = [("--model", options.model)]
    given += [("--seed_of_adapter", folder) for folder in options.seed_of_adapter]
    given += [("--placebo", folder) for folder in placebos]
    known: dict[str, str] = {}
    for option, folder in given:
        weights = weights_hash(folder) or str(folder)
        if weights in known:
            raise ValueError(
                f"{option} {folder} is the same adapter as {known[weights]}: give another training."
            )
        known[weights] = f"{option} {folder}"


def _check_adapter(options: argparse.Namespace, read) -> None:
    """Refuse a model without an adapter; report a dictionary of another adapter's differences."""
    from peft import PeftModel

    from rahf.models.adapters import same_model

    if not isinstance(read.model, PeftModel):
        raise ValueError(
            f"{options.model} is not an adapter: give the adapter of the aligned model."
        )
    origin = read.dictionary.origin
    if origin.kind == "differences" and not same_model(str(origin.adapter), options.model):
        print(
            f"note: the dictionary is of the differences that {origin.adapter} makes, not "
            f"{options.model}; it explains the change only as far as the two are alike.",
            file=sys.stderr,
        )


def _placebos(options: argparse.Namespace) -> list[Path]:
    """Return the folders of the placebos; a missing one is trained first."""
    found = []
    for given in options.placebo:
        if given == TRAIN:
            from rahf.pipeline.placebo import train_placebo

            folder = train_placebo(Path(options.model), options.output / "placebo", options.seed)
            found.append(folder)
        else:
            found.append(Path(given))
    return found


def _put(model, adapters, name: str) -> dict[str, str]:
    """Put adapters beside the one that is there; return their folders by their names."""
    from rahf.models.adapters import base_name, check_same_base, put_adapter

    found = {}
    for number, folder in enumerate(adapters, start=1):
        check_same_base(folder, base_name(model))
        put_adapter(model, folder, f"{name}_{number}")
        found[f"{name}_{number}"] = str(folder)
    return found
