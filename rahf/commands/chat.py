"""`rahf chat`: a conversation with an aligned model and its base, side by side."""

import argparse
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from rahf.commands.generate import decoding_of, decoding_options
from rahf.commands.options.models import load, model_options
from rahf.commands.options.steering import check_strengths, steering_options
from rahf.report.escaping import is_utf8

if TYPE_CHECKING:
    from rahf.data.messages import Message

EPILOG = """\
In the chat: /base hides or shows the base, /reset starts a new chat, /exit or Ctrl-D ends it.
Each side sees its own answers. Lines can be piped in:
  echo "How was the film?" | rahf chat --model outputs/mine"""

COMMANDS = "/base, /reset, /exit"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    model_options(parser)
    decoding_options(parser)
    steering_options(parser)


def run(options: argparse.Namespace) -> int:
    check_strengths(options)
    from rahf.commands.options.sides import answers_of, sides
    from rahf.data.prompts import chat_prompt_form
    from rahf.generation.answers import TooLongError
    from rahf.report.columns import columns

    loaded, decoding = load(options), decoding_of(options)
    every = sides(options, loaded)
    form = chat_prompt_form(loaded.tokenizer, options.chat_template)
    chats, shown, failed = _new_chats(every), every, False
    if sys.stdin.isatty():
        print(f"{COMMANDS}, or Ctrl-D to end")
    while (line := _next_line()) not in (None, "/exit"):
        if line == "/reset":
            chats = _new_chats(every)
        elif line == "/base":  # it has no part in turns while it is hidden, so the chat is new
            shown = every if len(shown) < len(every) else dict(list(every.items())[-1:])
            chats = _new_chats(every)
            print(f"shown: {', '.join(shown)}; a new chat")
        elif line.startswith("/"):
            print(f"{line} is not one of {COMMANDS}")
        elif line and not is_utf8(line):
            failed = _unanswered("the message is not UTF-8 text: write it as UTF-8.")
        elif line:
            asked = {name: [*chats[name], {"role": "user", "content": line}] for name in shown}
            try:
                answers = answers_of(shown, asked, loaded, form, decoding)
            except TooLongError as error:
                failed = _unanswered(f"{error.facts}. Write less, or give /reset for a new chat.")
                continue
            for name, answer in answers.items():
                chats[name] = [*asked[name], {"role": "assistant", "content": answer}]
            print(f"\n{columns(answers)}\n", flush=True)
    return 2 if failed and not sys.stdin.isatty() else 0


def _unanswered(why: str) -> bool:
    """Print why a message has no answer; the chat goes on without it."""
    print(f"not answered: {why}", file=sys.stderr, flush=True)
    return True


def _new_chats(names) -> dict[str, list["Message"]]:
    return {name: [] for name in names}


def _next_line() -> str | None:
    """Return the next line, stripped; None at the end of the input."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    with suppress(ImportError):  # Windows has none; then lines are not edited
        import readline  # noqa: F401
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return None
