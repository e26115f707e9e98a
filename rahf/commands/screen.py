"""`rahf screen`: which traits a data set will move, before any training."""

import argparse
from collections.abc import Callable
from pathlib import Path

from rahf.commands.options.models import content, identity, load, model_options

EPILOG = """\
DATA holds preference pairs (chosen against rejected responses), or prompts with responses
(prompt + response or completion, or messages), which are compared with the model's own answers.
FOLDER gets rows.jsonl (every row), summary.json and index.html; without --directions also the bank
that comes with rahf, fitted to the model."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    option("data", metavar="DATA", type="name", help="file, folder or data set of the Hub")
    model_options(parser)
    option(
        "--directions",
        metavar="FOLDER",
        type=Path,
        help="bank or single directions of rahf directions (default: the bank that comes with "
        "rahf, which is fitted first)",
    )
    option("--output", required=True, metavar="FOLDER", type=Path, help="folder of the results")
    option("--split", metavar="NAME", default="train", help="split of the data (default: train)")
    option(
        "--rows",
        metavar="N",
        type="count",
        default=400,
        help="rows that are read, drawn by the seed (default: 400)",
    )
    option(
        "--layers",
        metavar="LAYERS",
        default="0.5-0.8",
        help="blocks, as target_layers (default: 0.5-0.8)",
    )
    _reading_options(option)


def _reading_options(option: Callable[..., object]) -> None:
    option(
        "--max_response_tokens",
        metavar="N",
        type="count",
        default=64,
        help="tokens of a response that are read, and generated for the model's own answer "
        "(default: 64)",
    )
    option(
        "--top",
        metavar="N",
        type="count",
        default=5,
        help="rows shown for each direction (default: 5)",
    )
    option("--batch_size", metavar="N", type="count", default=8, help="texts at once (default: 8)")
    option("--seed", metavar="N", type="seed", default=0, help="seed of what is drawn (default: 0)")
    option(
        "--dry_run",
        action="store_true",
        help="report how much would be read and written, without loading weights",
    )


def run(options: argparse.Namespace) -> int:
    from rahf.artifacts import alone

    if options.dry_run:
        print(_planned(options))
        return 0
    with alone(options.output, wait=False):
        print(_screened(options))
    return 0


def _screened(options: argparse.Namespace) -> str:
    """Read, forecast and write; return the table."""
    from rahf.artifacts import write_lines, write_text
    from rahf.guards.screen import check_bank, read_sides, records_of, screen, summary_of
    from rahf.guards.screened_rows import check_rendered, ids_of_sides, read_rows, with_own_answers
    from rahf.models.adapters import depth_of, pad_id
    from rahf.recipe.layers import resolve_layers
    from rahf.records.command_line import write_result
    from rahf.report.screen import screen_page, screen_table

    screened = read_rows(options.data, options.split, options.rows, options.seed)
    model, tokenizer = load(options)
    template, most = options.chat_template, options.max_response_tokens
    check_rendered(options.data, screened, tokenizer, template)
    layers = resolve_layers(options.layers, depth_of(model))
    bank = _bank(options, model, tokenizer)
    check_bank(bank, model, layers)
    how = {"max_new_tokens": most, "batch_size": options.batch_size}
    rows = with_own_answers(screened, model, tokenizer, template, **how)
    ids = ids_of_sides(rows, tokenizer, template, most)
    group = screened.groups()
    sides = read_sides(model, layers, ids, group, pad_id(tokenizer), options.batch_size)
    found = screen(bank, sides, rows, options.seed)
    counts = {"kind": screened.kind, "rows": len(rows), "rows_found": screened.found}
    counts |= {"prompts": len(set(group.tolist())), "layers": list(layers)}
    settings = {**identity(options), "data": options.data, "seed": options.seed}
    settings |= {"max_response_tokens": most, "made_from": content(options)}
    summary = {**settings, **counts, **summary_of(found, rows, options.top)}
    records, folder = records_of(found, rows), options.output
    write_lines(folder / "rows.jsonl", records)
    write_result(folder / "summary.json", options.command, summary)
    title = f"What training {options.model} on {options.data} will move"
    write_text(folder / "index.html", screen_page(title, summary, records))
    return f"{screen_table(summary)}\n\npage: {folder / 'index.html'}"


def _bank(options: argparse.Namespace, model, tokenizer):
    """Return the bank of --directions, or the one that comes with rahf, fitted to the model."""
    from rahf.directions.bank import own_bank, read_bank
    from rahf.guards.screen import load_bank
    from rahf.models.adapters import depth_of
    from rahf.pipeline.bank import Reading, fit_bank

    if options.directions is not None:
        return load_bank(options.directions)
    folder = options.output / "bank"
    every = tuple(range(depth_of(model)))
    reading = Reading(every, 64, options.batch_size, options.seed, "answers of the bank")
    table = fit_bank(model, tokenizer, read_bank(own_bank()), folder, reading, content(options))
    print(f"{table}\n\ndirections: {folder}\n")
    return load_bank(folder)


def _planned(options: argparse.Namespace) -> str:
    """Return what would be read and written, from the data and the tokenizer."""
    from rahf.directions.bank import own_bank, read_bank
    from rahf.guards.screened_rows import SFT, ids_of_sides, read_rows
    from rahf.models.adapters import load_tokenizer_of

    screened = read_rows(options.data, options.split, options.rows, options.seed)
    tokenizer = load_tokenizer_of(
        options.model, options.base, trust_remote_code=options.trust_remote_code
    )
    most = options.max_response_tokens
    ids = ids_of_sides(screened.rows, tokenizer, options.chat_template, most)
    own = screened.kind == SFT
    read = sum(len(prompt) + len(response) for side in ids[: 1 if own else 2]
               for prompt, response in side)  # fmt: skip
    lines = [
        f"{screened.kind}: {len(screened.rows)} of {screened.found} rows would be read, "
        f"{len(set(screened.groups().tolist()))} prompts",
        f"{read} tokens to read in {'one side' if own else 'both sides'}",
    ]
    if own:
        lines.append(f"{len(screened.rows)} own answers of at most {most} tokens to write and read")
    if options.directions is None:
        entries = read_bank(own_bank())
        answers = sum(2 * len(entry.prompts) for entry in entries)
        lines.append(f"{len(entries)} directions to fit from {answers} answers of 64 tokens")
    return "\n".join(lines)
