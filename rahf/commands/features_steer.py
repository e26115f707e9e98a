"""`rahf features steer`: responses of a model whose features are pinned, scaled or ablated."""

import argparse
from pathlib import Path

from rahf.commands.generate import decoding_of, decoding_options, generator_name, prompt_form
from rahf.commands.options.dictionaries import (
    check_features,
    dictionary_option,
    feature_option,
    reading,
)
from rahf.commands.options.models import content, identity, model_options

EPILOG = """\
pin: the activation becomes X in every token; scale: X times what it is (1 changes nothing);
ablate: it becomes 0. With --kl the X is solved for at which the predictions on neutral text move by
so many nats per token. Prompts and responses are files as those of `rahf generate`."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    model_options(parser)
    dictionary_option(parser)
    feature_option(parser)
    option(
        "--how",
        choices=("pin", "scale", "ablate"),
        required=True,
        help="what is done to the feature",
    )
    strength = parser.add_mutually_exclusive_group()
    strength.add_argument(
        "--strength", metavar="X", type="strength", help="value (pin) or factor (scale)"
    )
    strength.add_argument(
        "--kl", metavar="NATS", type="positive number", help="solve X for this divergence"
    )
    option("--neutral", metavar="FILE", type=Path, help="with --kl: records with a `text`")
    option(
        "--steered_tokens",
        choices=("generated", "all"),
        default="generated",
        help="tokens of the response from the one that predicts it, or the prompt's too (default: "
        "generated)",
    )
    option("--prompts", required=True, metavar="FILE", type=Path, help="the prompts")
    option(
        "--output", required=True, metavar="FILE", type=Path, help="file to write, .jsonl or .json"
    )
    option("--generator", metavar="NAME", help="generator named in the file (default: the model)")
    option("--limit", metavar="N", type="count", help="answer the first N prompts")
    option(
        "--batch_size", metavar="N", type="count", default=16, help="prompts at once (default: 16)"
    )
    decoding_options(parser)
    parser.set_defaults(urial=None)


def run(options: argparse.Namespace) -> int:
    from rahf.data.prompts import read_prompts, response_layout
    from rahf.generation.responses import write_responses
    from rahf.interpret.features.intervention import intervene

    response_layout(options.output)
    _check(options)
    prompts = read_prompts(options.prompts)[: options.limit]
    decoding = decoding_of(options)
    read = reading(options)
    check_features(options, read.dictionary)
    interventions = _interventions(options, read)
    start = "generated" if options.steered_tokens == "generated" else None
    with intervene(read.model, read.dictionary, interventions, start=start):
        counts = write_responses(
            read.model,
            read.tokenizer,
            prompts,
            prompt_form(options, read.tokenizer),
            decoding,
            options.output,
            generator=options.generator or generator_name(options),
            made_with={**identity(options), "features": _identity(options, interventions)},
            made_from=content(options),
            made_by=options.command,
            batch_size=options.batch_size,
        )
    print(
        f"{options.output}: {counts['responses']} responses, {counts['mean_tokens']:.1f} tokens "
        f"each; {_described(interventions)}"
    )
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse strengths that do not go together, before anything is loaded."""
    if options.how == "ablate" and (options.strength is not None or options.kl is not None):
        raise ValueError("--how ablate has no strength: omit --strength and --kl.")
    if options.how != "ablate" and options.strength is None and options.kl is None:
        raise ValueError(f"--how {options.how} needs --strength X, or --kl NATS with --neutral.")
    if (options.kl is None) != (options.neutral is None):
        raise ValueError("--kl is solved for on --neutral text: give both or neither.")
    if options.kl is not None and len(options.feature) > 1:
        raise ValueError("--kl is solved for one feature: give a single --feature.")


def _interventions(options: argparse.Namespace, read):
    from rahf.data.tokenization import tokenize_texts
    from rahf.interpret.features.intervention import (
        Intervention,
        check_interventions,
        strength_at,
    )

    strength = options.strength or 0.0
    made = [Intervention(latent, options.how, strength) for latent in options.feature]
    check_interventions(read.dictionary, made)
    if options.kl is None:
        return made
    texts = tokenize_texts(options.neutral, read.tokenizer, rows=NEUTRAL_TEXTS, tokens=TOKENS)
    asked = (options.feature[0], options.how, options.kl, texts, read.pad_token_id)
    strength = strength_at(read.model, read.dictionary, *asked)
    return [Intervention(options.feature[0], options.how, strength)]


NEUTRAL_TEXTS, TOKENS = 16, 64
"""Texts, and tokens of each, that a KL is solved for on."""


def _identity(options: argparse.Namespace, interventions) -> dict:
    from dataclasses import asdict

    from rahf.artifacts import expanded, identity_of

    folder = expanded(options.dictionary)
    return {
        "dictionary": identity_of(folder) if folder.exists() else options.dictionary,
        "interventions": [asdict(each) for each in interventions],
        "tokens": options.steered_tokens,
    }


def _described(interventions) -> str:
    parts = [
        f"feature {each.latent} {each.how}"
        + ("" if each.how == "ablate" else f" {each.strength:.4g}")
        for each in interventions
    ]
    return ", ".join(parts)
