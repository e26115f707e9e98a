"""Options for held-out responses, of pairs or of a file of responses, and their ids."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path


def held_out_options(parser: argparse._ActionsContainer, *, required: bool = True) -> None:
    option, given = parser.add_argument, parser.add_mutually_exclusive_group(required=required)
    given.add_argument("--pairs", metavar="NAME", help="held-out pairs: a file, folder or Hub id")
    given.add_argument("--responses", metavar="FILE", type=Path, help="held-out responses")
    option("--split", metavar="NAME", default="test", help="split of the pairs (default: test)")
    option("--limit", metavar="N", type="count", default=200, help="prompts at most (default: 200)")
    option(
        "--max_length",
        metavar="N",
        type="count",
        default=512,
        help="tokens of prompt and response (default: 512)",
    )


def held_out(options: argparse.Namespace, tokenizer) -> list[tuple[int, list[int], list[int]]]:
    """Return the number of each prompt, its ids, and those of a response, of --limit prompts.

    What --limit and --max_length leave out is reported on stderr.
    """
    found, numbers, cut = [], {}, 0
    for prompt, response in (_responses if options.responses else _pairs)(options, tokenizer):
        number = numbers.setdefault(tuple(prompt), len(numbers))
        if number < options.limit:
            kept = response[: max(0, options.max_length - len(prompt))]
            cut += len(kept) < len(response)
            found.append((number, prompt, kept))
    if len(numbers) > options.limit:
        _note(f"the first {options.limit} of {len(numbers)} prompts are read (--limit)")
    if cut:
        _note(f"{cut} of {len(found)} responses lose their end (--max_length {options.max_length})")
    return found


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _responses(options: argparse.Namespace, tokenizer) -> list[tuple[list[int], list[int]]]:
    from rahf.data.prompts import read_responses
    from rahf.data.response_ids import tokenize_responses

    given = read_responses(options.responses)
    chats, texts = [entry.messages for entry in given], [entry.text for entry in given]
    return tokenize_responses(chats, texts, tokenizer, options.chat_template)


def _pairs(options: argparse.Namespace, tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    from rahf.data.sources import load_pairs
    from rahf.data.tokenization import tokenize_pairs

    pairs = load_pairs(options.pairs, split=options.split)
    rows, _ = tokenize_pairs(pairs, tokenizer, chat_template=options.chat_template)
    if len(rows) < len(pairs):
        _note(
            f"{len(pairs) - len(rows)} of {len(pairs)} pairs cannot be used (rahf data shows why)"
        )
    for row in rows:
        for side in ("chosen_ids", "rejected_ids"):
            yield row["prompt_ids"], row[side]
