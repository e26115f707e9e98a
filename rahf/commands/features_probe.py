"""`rahf features probe`: how well a few features distinguish labelled texts."""

import argparse
import sys
from pathlib import Path
from typing import Any

from rahf.commands.options.dictionaries import (
    check_of_states,
    dictionary_of,
    print_dictionary_figures,
    reading,
    reading_options,
)

EPILOG = """\
FILE holds records (jsonl, json, csv, also gzipped) with a text and one of two labels. Features are
chosen and probes are fitted on 70 % of the texts; figures are of the others. The table compares
the dictionary with a dense probe on hidden states, single dimensions of them, and the same of an
untrained model, features too with --untrained_dictionary. A dictionary is useful where few
features come near the dense probe and far from the nulls."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    reading_options(parser)
    option(
        "--texts",
        metavar="FILE",
        type=Path,
        action="append",
        required=True,
        help="labelled texts; may be given again",
    )
    option("--text_column", metavar="NAME", default="text", help="text column (default: text)")
    option("--label_column", metavar="NAME", default="label", help="label column (default: label)")
    option(
        "--limit",
        metavar="N",
        type="count",
        default=2000,
        help="texts of a file (default: 2000)",
    )
    option(
        "--length", metavar="N", type="count", default=128, help="tokens of a text (default: 128)"
    )
    option(
        "--untrained_seed",
        metavar="N",
        type="seed",
        default=0,
        help="seed of the untrained model (default: 0)",
    )
    option(
        "--untrained_dictionary",
        metavar="FOLDER",
        help="dictionary of that untrained model (`rahf features train --untrained_seed N`)",
    )
    option("--seed", metavar="N", type="seed", default=0, help="seed of the split (default: 0)")
    option(
        "--batch_size", metavar="N", type="count", default=16, help="texts at once (default: 16)"
    )


def run(options: argparse.Namespace) -> int:
    return print_dictionary_figures(options, _figures)


def _figures(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from rahf.interpret.features.bases import check_base
    from rahf.interpret.features.labelled import read_labelled
    from rahf.interpret.features.probing import split_labels
    from rahf.interpret.features.texts import first_pieces
    from rahf.interpret.features.untrained import untrained_like
    from rahf.report.feature_units import probe_table

    sets = {
        path: read_labelled(path, options.text_column, options.label_column, options.limit)
        for path in options.texts
    }
    splits = {path: split_labels(given.labels, options.seed) for path, given in sets.items()}
    read = reading(options)
    null = _null(options, read)
    firsts = {
        path: first_pieces(given.texts, read.tokenizer, options.length)
        for path, given in sets.items()
    }
    _report_omitted(sets, firsts)
    trained = {path: _read(options, read, firsts[path], given) for path, given in sets.items()}
    read = read._replace(model=untrained_like(read.model, options.untrained_seed))
    if null is not None:
        check_base(null, read.model)
        read = read._replace(dictionary=null)
    found = []
    for path, given in sets.items():
        untrained = _read(options, read, firsts[path], given, encode=null is not None)
        figures = _set_figures(trained[path], untrained, given.labels, splits[path])
        found.append({"texts": path.name, "positive": given.positive, **figures})
    tables = "\n\n".join(probe_table(figures) for figures in found)
    return {"sets": found}, tables


def _null(options: argparse.Namespace, read):
    """Return the dictionary of the untrained model, if there is one.

    Raises:
        ValueError: it is of differences, or does not read what the other dictionary reads.
    """
    if options.untrained_dictionary is None:
        return None
    null = dictionary_of(options, options.untrained_dictionary)
    check_of_states(null, options.untrained_dictionary)
    places = [(each.origin.layer, each.origin.site) for each in (read.dictionary, null)]
    if places[0] != places[1]:
        raise ValueError(
            f"--untrained_dictionary {options.untrained_dictionary} reads layer {places[1][0]} "
            f"({places[1][1]}), --dictionary reads layer {places[0][0]} ({places[0][1]}): give two "
            "of one place."
        )
    return null


def _report_omitted(sets, firsts) -> None:
    for path, given in sets.items():
        count = len(given.texts)
        if not given.whole:
            print(f"note: the first {count} texts of {path} are read (--limit)", file=sys.stderr)
        if empty := count - len(firsts[path].texts):
            print(
                f"note: {empty} of {count} texts of {path} have no token that is read; they count "
                "as texts in which nothing is active",
                file=sys.stderr,
            )


def _read(options: argparse.Namespace, read, first, given, encode=True):
    """Return what each text has on average under a model."""
    from rahf.interpret.features.texts import of_texts, read_texts

    dictionary, size = read.dictionary, options.batch_size
    batches = read_texts(read.model, dictionary, first, read.pad_token_id, batch_size=size)
    encoder = dictionary if encode else None
    return of_texts(batches, encoder, len(given.texts), dictionary.d_model)


def _set_figures(trained, untrained, labels, split) -> dict:
    from rahf.interpret.features.probing import (
        probe_densely,
        probe_dimensions,
        probe_figures,
        probe_latents,
    )

    untrained_features = {}
    if untrained.codes is not None:
        untrained_features["untrained features"] = probe_latents(untrained.codes, labels, split)
    probes = {
        "features": probe_latents(trained.codes, labels, split),
        "dimensions": probe_dimensions(trained.hidden, labels, split),
        "hidden states": probe_densely(trained.hidden, labels, split),
        **untrained_features,
        "untrained dimensions": probe_dimensions(untrained.hidden, labels, split),
        "untrained hidden states": probe_densely(untrained.hidden, labels, split),
    }
    return {
        "train": len(split.train),
        "test": len(split.test),
        "share": labels.double().mean().item(),
        "probes": probe_figures(probes),
    }
