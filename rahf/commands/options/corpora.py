"""Options of the commands that read plain text, and its pieces."""

import argparse


def corpus_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
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


def pieces(options: argparse.Namespace, tokenizer):
    """Return the first piece of each text, until enough tokens are read."""
    from rahf.interpret.features.corpus import texts_of
    from rahf.interpret.features.texts import first_pieces

    texts = texts_of(options.text, options.split, options.column)
    return first_pieces(texts, tokenizer, options.length, options.tokens)
