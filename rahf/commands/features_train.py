"""`rahf features train`: sparse dictionaries of a model's hidden states, or of what an adapter does
to them.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rahf.commands.options.corpora import check_first_text
from rahf.commands.options.models import content, identity, load, model_options

if TYPE_CHECKING:
    from rahf.interpret.features.corpus import Corpus
    from rahf.interpret.features.runs import Job
    from rahf.interpret.features.training import Settings

EPILOG = """\
One of --text, --dataset and --pairs is read. Special tokens and the first token of each piece of
text are context only. A dictionary is made for each layer, size and seed, all in one pass; FOLDER
gets each of them, quality.json, quality.md and quality.png."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    model_options(parser)
    check_first_text(parser, lambda options: options.text or options.dataset)
    option = parser.add_argument
    option(
        "--untrained_seed",
        metavar="N",
        type="seed",
        help="give the model random weights of this seed: a null for `rahf features probe`",
    )
    option("--output", required=True, metavar="FOLDER", type=Path, help="folder of the results")
    option("--dry_run", action="store_true", help="try a few texts, report time and memory, stop")
    _text_options(parser)
    _state_options(parser)
    _dictionary_options(parser)


def _text_options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", metavar="FILE", help="plain text, or records with a text each")
    source.add_argument("--dataset", metavar="NAME", help="saved by `datasets`, or of the Hub")
    source.add_argument("--pairs", metavar="NAME", help="preference pairs: their responses")
    option = parser.add_argument
    option(
        "--split", metavar="NAME", default="train", help="split of the data set (default: train)"
    )
    option("--column", metavar="NAME", default="text", help="column of the texts (default: text)")
    option(
        "--tokens",
        metavar="N",
        type="count",
        default=5_000_000,
        help="tokens to train on (default: 5000000); a shorter text is read again",
    )
    option(
        "--held_out",
        metavar="N",
        type="count",
        default=20_000,
        help="tokens to measure on, at most a fifth of the text (default: 20000)",
    )
    option(
        "--length", metavar="N", type="count", default=256, help="tokens of a piece (default: 256)"
    )
    option("--every_token", action="store_true", help="read first, special and massive tokens")
    option(
        "--batch_size", metavar="N", type="count", default=16, help="pieces at once (default: 16)"
    )


def _state_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option(
        "--layers", metavar="LAYERS", default="0.5", help="blocks, as target_layers (default: 0.5)"
    )
    option(
        "--site",
        choices=("residual", "mlp"),
        default="residual",
        help="output of a block, or of its MLP (default: residual)",
    )
    option(
        "--kind",
        choices=("states", "differences"),
        default="states",
        help="hidden states, or what the adapter adds to them (default: states)",
    )


def _dictionary_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option(
        "--latents",
        metavar="N",
        type="count",
        nargs="+",
        default=[4096],
        help="latents of a dictionary, or several sizes (default: 4096)",
    )
    option(
        "--k", metavar="N", type="count", default=32, help="active latents per token (default: 32)"
    )
    option("--signed", action="store_true", help="latents may be negative (AbsTopK)")
    option(
        "--seeds",
        metavar="N",
        type="seed",
        nargs="+",
        default=[0, 1],
        help="seeds of the trainings whose agreement is reported (default: 0 1)",
    )
    option(
        "--learning_rate",
        metavar="X",
        type="positive learning rate",
        default=1e-3,
        help="learning rate of Adam (default: 0.001)",
    )
    option(
        "--batch_tokens",
        metavar="N",
        type="count",
        default=2048,
        help="tokens of a training step (default: 2048)",
    )


def run(options: argparse.Namespace) -> int:
    from rahf.artifacts import identity_of
    from rahf.interpret.features.estimate import estimated
    from rahf.interpret.features.runs import misfits, train_dictionaries
    from rahf.report.features import estimate_text, quality_table

    job = _job(options)
    for misfit in misfits(job):
        print(f"note: {misfit}", file=sys.stderr)
    if options.dry_run:
        print(estimate_text(estimated(job)._asdict()))
        return 0
    made_from = {**content(options), "text": identity_of(_source(options))}
    given = (_made_with(options, job), made_from, options.command)
    figures = train_dictionaries(job, options.output, *given)
    print(f"{quality_table(figures)}\n\ndictionaries: {options.output}")
    return 0


def _source(options: argparse.Namespace) -> str:
    return options.text or options.dataset or options.pairs


def _made_with(options: argparse.Namespace, job: "Job") -> dict[str, Any]:
    """Return all that decides the result; the number of pieces at once does not."""
    names = ("split", "column", "tokens", "held_out", "length", "every_token", "site", "kind")
    names += ("latents", "k", "signed", "seeds", "learning_rate", "batch_tokens")
    chosen = {name: getattr(options, name) for name in names}
    untrained = options.untrained_seed
    return {
        **identity(options),
        "base": options.base,
        **({} if untrained is None else {"untrained_seed": untrained}),
        "text": _source(options),
        "layers": list(job.reader.layers),
        **chosen,
    }


def _job(options: argparse.Namespace) -> "Job":
    """Load the model and the text.

    Raises:
        ValueError: differences of a model without an adapter; a value that fits no training.
    """
    from peft import PeftModel

    from rahf.interpret.features.runs import Job
    from rahf.interpret.features.streams import StateReader
    from rahf.interpret.features.untrained import untrained_like
    from rahf.models.adapters import depth_of, pad_id
    from rahf.recipe.layers import resolve_layers

    settings = _settings(options)
    model, tokenizer = load(options)
    adapted = isinstance(model, PeftModel)
    if options.kind == "differences" and not adapted:
        raise ValueError(
            f"--kind differences needs an adapter, but {options.model} is a full model; give an "
            "adapter, or --kind states."
        )
    if options.untrained_seed is not None:
        if adapted:
            raise ValueError(
                f"--untrained_seed needs a full model, but {options.model} is an adapter; give its "
                "base."
            )
        model = untrained_like(model, options.untrained_seed)
    layers = resolve_layers(options.layers, depth_of(model))
    place = (layers, options.site, options.kind, pad_id(tokenizer), options.batch_size)
    return Job(
        StateReader(model, *place),
        _corpus(options, model, tokenizer),
        settings,
        options.tokens,
        options.held_out,
        options.model if adapted else None,
    )


def _settings(options: argparse.Namespace) -> "Settings":
    from rahf.interpret.features.training import Settings

    latents, seeds = (tuple(dict.fromkeys(given)) for given in (options.latents, options.seeds))
    if options.k > min(latents):
        raise ValueError(
            f"--k {options.k} is more than --latents {min(latents)}: a token cannot have more "
            "active latents than there are."
        )
    return Settings(
        latents,
        options.k,
        seeds,
        options.signed,
        options.every_token,
        options.learning_rate,
        options.batch_tokens,
    )


def _corpus(options: argparse.Namespace, model, tokenizer) -> "Corpus":
    from rahf.data.sources import load_pairs
    from rahf.data.tokenization import tokenize_pairs
    from rahf.interpret.features.corpus import corpus_of_pairs, corpus_of_texts, texts_of
    from rahf.models.limits import learned_positions

    positions = learned_positions(model)
    if positions is not None and options.length > positions:
        raise ValueError(
            f"--length {options.length} is more than the {positions} positions that the model has "
            f"learned; give at most {positions}."
        )
    wanted = {"tokens": options.tokens + options.held_out, "every_token": options.every_token}
    if options.text and not Path(options.text).is_file():
        raise ValueError(f"There is no file {options.text}; give one, or a --dataset.")
    if options.pairs is None:
        texts = texts_of(options.text or options.dataset, options.split, options.column)
        return corpus_of_texts(texts, tokenizer, length=options.length, **wanted)
    pairs = load_pairs(options.pairs, split=options.split)
    template = options.chat_template
    rows, _ = tokenize_pairs(pairs, tokenizer, max_length=options.length, chat_template=template)
    return corpus_of_pairs(rows, tokenizer, **wanted)
