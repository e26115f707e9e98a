"""Options of the commands that read plain text, and its pieces."""

import argparse
from collections.abc import Callable


def corpus_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    check_first_text(parser, lambda options: options.text)
    option("--text", required=True, metavar="NAME", help="text file, records or data set")
    option("--column", metavar="NAME", default="text", help="column of the text (default: text)")
    option("--split", metavar="NAME", default="train", help="split of a data set (default: train)")
    option(
        "--tokens", metavar="N", type="count", default=50_000, help="tokens read (default: 50000)"
    )
    option(
        "--length", metavar="N", type="count", default=256, help="tokens of a text (default: 256)"
    )
    option(
        "--batch_size", metavar="N", type="count", default=16, help="texts at once (default: 16)"
    )
    option("--seed", metavar="N", type="seed", default=0, help="seed of what is drawn (default: 0)")


def check_first_text(
    parser: argparse.ArgumentParser, named: Callable[[argparse.Namespace], str | None]
) -> None:
    """Refuse a local file without a text in --column before a model is loaded.

    named: options -> the file's name; None: there is no text to read.
    """
    earlier = parser.get_default("check")

    def check(options: argparse.Namespace) -> None:
        from rahf.artifacts import expanded

        earlier(options)
        name = named(options)
        if name is not None and expanded(name).is_file():
            from rahf.interpret.features.corpus import texts_of

            next(iter(texts_of(name, options.split, options.column)), None)

    parser.set_defaults(check=check)


def pieces(options: argparse.Namespace, tokenizer):
    """Return the first piece of each text, until enough tokens are read."""
    from rahf.interpret.features.corpus import texts_of
    from rahf.interpret.features.texts import first_pieces

    texts = texts_of(options.text, options.split, options.column)
    return first_pieces(texts, tokenizer, options.length, options.tokens)
