"""`rahf shift`: where an aligned model writes what its base would not have written."""

import argparse
import hashlib
from pathlib import Path

from rahf.commands.options.models import content, identity, load, model_options

EPILOG = """\
--model is measured: an adapter against the same weights with the adapter off, any other model
against --against. With --prompts the model's own greedy responses are measured, with
--responses those of a file (as `rahf generate` writes it). FOLDER gets shift.jsonl (every token),
summary.json, shift.png and index.html (the text in colour)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    model_options(parser)
    option("--against", metavar="NAME", help="model to compare with (default: adapter off)")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompts", metavar="FILE", type=Path, help="prompts to answer, greedily")
    given.add_argument("--responses", metavar="FILE", type=Path, help="responses to measure")
    option("--output", required=True, metavar="FOLDER", type=Path, help="folder of the results")
    option("--limit", metavar="N", type="count", help="the first N prompts or responses")
    option(
        "--max_new_tokens",
        metavar="N",
        type="count",
        default=256,
        help="tokens of a response, at most (default: 256)",
    )
    option(
        "--batch_size", metavar="N", type="count", default=8, help="responses at once (default: 8)"
    )


def run(options: argparse.Namespace) -> int:
    from rahf.artifacts import alone, identity_of
    from rahf.data.prompts import prompt_text, read_prompts, read_responses
    from rahf.generation.record_file import ResumableFile
    from rahf.interpret.token_shift.records import write_shifts
    from rahf.interpret.token_shift.shift import check_same_tokenizer, speaking_as_base

    read = read_responses if options.responses else read_prompts
    given = read(options.responses or options.prompts)[: options.limit]
    (model, tokenizer), base, other = load(options), None, None
    if options.against is not None:
        base, its_tokenizer = load(options, options.against)
        check_same_tokenizer(tokenizer, its_tokenizer)
        other = identity(options, options.against)
    with speaking_as_base(model, base):
        pass  # a missing base is reported before the work begins
    ids, responses = _responses(options, model, tokenizer, given)
    settings = {
        **identity(options),
        "against": other,
        "max_new_tokens": options.max_new_tokens,
        "generated": options.responses is None,
        "read": hashlib.sha256(repr(ids).encode()).hexdigest(),
    }
    made_from = content(options)
    made_from["against"] = identity_of(options.against) if options.against else None
    with alone(options.output, wait=False):
        file = ResumableFile(options.output / "shift.jsonl", settings, made_from, options.command)
        if not file.complete:
            prompts = [prompt_text(entry.messages) for entry in given]
            write_shifts(model, base, tokenizer, prompts, responses, file, options.batch_size)
        print(_report(options))
    return 0


def _responses(options: argparse.Namespace, model, tokenizer, given):
    """Return the ids that the models are given, and where the responses come from."""
    from rahf.data.prompts import chat_prompt_form, refuse_rendered
    from rahf.data.response_ids import tokenize_responses
    from rahf.generation.answers import end_ids
    from rahf.interpret.token_shift.records import (
        given_responses,
        greedy_responses,
        without_unwritten_ends,
    )

    chats, file = [entry.messages for entry in given], options.responses or options.prompts
    refuse_rendered(file, chats, tokenizer, options.chat_template)
    if options.responses is None:
        form = chat_prompt_form(tokenizer, options.chat_template)
        ids = [form.encode(chat) for chat in chats]
        asked = (options.max_new_tokens, options.batch_size)
        return ids, greedy_responses(model, tokenizer, ids, *asked)
    texts = [entry.text for entry in given]
    ids = tokenize_responses(chats, texts, tokenizer, options.chat_template)
    finished = [entry.finished for entry in given]
    ids = without_unwritten_ends(ids, finished, end_ids(model, tokenizer))
    return ids, given_responses(ids, options.max_new_tokens)


def _report(options: argparse.Namespace) -> str:
    """Write summary, chart and page from the records; return the tables."""
    from rahf.artifacts import read_lines, write_text
    from rahf.interpret.token_shift.summary import summarize_shift
    from rahf.records.command_line import write_result
    from rahf.report.shift import shift_chart, shift_page, shift_table, top_table

    folder = options.output
    records = read_lines(folder / "shift.jsonl")
    summary = summarize_shift(records)
    write_result(folder / "summary.json", options.command, summary)
    shift_chart(summary, folder / "shift.png")
    title = f"Token shift of {options.model} against {options.against or 'its base'}"
    page = shift_page(title, summary, records, folder / "shift.png")
    write_text(folder / "index.html", page)
    return f"{shift_table(summary)}\n\n{top_table(summary, 12)}\n\npage: {folder / 'index.html'}"
