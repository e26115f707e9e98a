"""`rahf features diff`: what else changed between a base and its aligned model."""

import argparse
import sys
from pathlib import Path

from rahf.commands.options.dictionaries import dictionary_of, dictionary_option, with_tokens
from rahf.commands.options.models import Loaded, content, identity, load, model_options

EPILOG = """\
Base and aligned model read the same held-out responses, with the adapter off and on. A feature has
moved where its mean activation changed (interval over prompts, false discoveries at 5 %) by more
than 95 % of the features change under a placebo: the same training on pairs whose sides are drawn
at random. --placebo train makes one with the adapter's own recipe, in FOLDER/placebo."""

TRAIN = "train"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    model_options(parser)
    dictionary_option(parser)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--pairs", metavar="NAME", help="held-out pairs: a file, folder or Hub id")
    given.add_argument("--responses", metavar="FILE", type=Path, help="held-out responses")
    option("--split", metavar="NAME", default="test", help="of the pairs (default: test)")
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
    option("--limit", metavar="N", type="count", default=200, help="prompts at most (default: 200)")
    option(
        "--max_length",
        metavar="N",
        type="count",
        default=512,
        help="tokens of prompt and response (default: 512)",
    )
    option("--top", metavar="N", type="count", default=20, help="features listed (default: 20)")
    option("--seed", metavar="N", type="seed", default=0, help="of the pairs' sides (default: 0)")
    option("--batch_size", metavar="N", type="count", default=4, help="responses at once (4)")
    option("--output", metavar="FOLDER", type=Path, help="folder for features.json and the table")


def run(options: argparse.Namespace) -> int:
    from rahf.artifacts import write_json, write_text
    from rahf.interpret.features.bases import check_base
    from rahf.interpret.features.held_out import find_movement
    from rahf.interpret.features.summary import movement_figures
    from rahf.models.adapters import pad_id
    from rahf.report.features import movement_tables

    _check(options)
    dictionary, placebos = dictionary_of(options), _placebos(options)
    loaded = load(options)
    _check_adapter(options, loaded)
    check_base(dictionary, loaded.model)
    held_out = _held_out(options, loaded)
    seeds = _put(loaded, options.seed_of_adapter, "seed")
    names = _put(loaded, placebos, "placebo")
    found = find_movement(
        loaded.model.eval(),
        dictionary,
        ("default", *seeds),
        held_out,
        pad_id(loaded.tokenizer),
        placebos=names,
        special=loaded.tokenizer.all_special_ids,
        batch_size=options.batch_size,
    )
    figures = movement_figures(
        found, dictionary.directions, ("default", *seeds), names, options.top
    )
    figures["features"] = with_tokens(figures["features"], loaded, dictionary)
    adapters = dict(zip((*seeds, *names), (*options.seed_of_adapter, *placebos), strict=True))
    figures = {
        **identity(options),
        "made_from": content(options),
        "dictionary": options.dictionary,
        "adapters": {name: str(path) for name, path in adapters.items()},
        **figures,
    }
    table = movement_tables(figures)
    if options.output is not None:
        write_json(options.output / "features.json", figures)
        write_text(options.output / "features.md", table + "\n")
    print(table)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what is wrong before anything is loaded or trained."""
    if TRAIN in options.placebo and options.output is None:
        raise ValueError(
            f"--placebo {TRAIN} writes an adapter: give --output, below which it is kept."
        )


def _check_adapter(options: argparse.Namespace, loaded: Loaded) -> None:
    from peft import PeftModel

    if not isinstance(loaded.model, PeftModel):
        raise ValueError(
            f"{options.model} is no adapter that could be turned off: give the adapter of the "
            "aligned model."
        )


def _placebos(options: argparse.Namespace) -> list[Path]:
    """Return the folders of the placebos; one that is asked for is trained first."""
    found = []
    for given in options.placebo:
        if given == TRAIN:
            from rahf.pipeline.placebo import train_placebo

            folder = train_placebo(Path(options.model), options.output / "placebo", options.seed)
            found.append(folder)
        else:
            found.append(Path(given))
    return found


def _put(loaded: Loaded, adapters, name: str) -> list[str]:
    """Put adapters beside the one that is there; return their names."""
    from rahf.models.adapters import base_name, check_same_base, put_adapter

    names = []
    for number, folder in enumerate(adapters, start=1):
        check_same_base(folder, base_name(loaded.model))
        names.append(f"{name}_{number}")
        put_adapter(loaded.model, folder, names[-1])
    return names


def _held_out(options: argparse.Namespace, loaded: Loaded):
    """Return held-out responses; those to one prompt have one number."""
    rows = _responses(options, loaded) if options.responses else _pairs(options, loaded)
    found, numbers = [], {}
    from rahf.interpret.features.held_out import HeldOut

    cut = 0
    for prompt, response in rows:
        number = numbers.setdefault(tuple(prompt), len(numbers))
        if number >= options.limit:
            continue
        kept = response[: max(0, options.max_length - len(prompt))]
        cut += len(kept) < len(response)
        found.append(HeldOut(number, prompt, kept))
    if cut:
        print(
            f"note: {cut} of {len(found)} responses lose their end at --max_length "
            f"{options.max_length}",
            file=sys.stderr,
        )
    return found


def _responses(options: argparse.Namespace, loaded: Loaded):
    from rahf.data.prompts import read_responses
    from rahf.data.response_ids import tokenize_responses

    given = read_responses(options.responses)
    chats, texts = [entry.messages for entry in given], [entry.text for entry in given]
    return tokenize_responses(chats, texts, loaded.tokenizer, options.chat_template)


def _pairs(options: argparse.Namespace, loaded: Loaded):
    from rahf.data.sources import load_pairs
    from rahf.data.tokenization import tokenize_pairs

    pairs = load_pairs(options.pairs, split=options.split)
    rows, _ = tokenize_pairs(
        pairs,
        loaded.tokenizer,
        max_length=options.max_length,
        chat_template=options.chat_template,
    )
    for row in rows:
        for side in ("chosen_ids", "rejected_ids"):
            yield row["prompt_ids"], row[side]
