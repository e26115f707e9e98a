"""Options of the commands that read a model through a dictionary, and what they name, loaded."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rahf.commands.options.figures import figures_option, print_figures
from rahf.commands.options.models import device, load, model_options

TOKENS = 6
"""Tokens that represent a feature in a table."""


class Reading(NamedTuple):
    """A model in evaluation mode, its tokenizer, and a dictionary of its hidden states."""

    model: Any
    tokenizer: Any
    dictionary: Any
    pad_token_id: int


def dictionary_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dictionary",
        required=True,
        metavar="NAME",
        help="folder of a dictionary, or sae-lens:RELEASE:ID",
    )


def reading_options(parser: argparse.ArgumentParser, *, named: bool = True) -> None:
    """Add model, dictionary and --output; `named`: the model is required."""
    model_options(parser, named=named)
    dictionary_option(parser)
    figures_option(parser)


def feature_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--feature",
        metavar="N",
        type="count from zero",
        action="append",
        required=True,
        help="number of a feature; may be given again",
    )


def dictionary_of(options: argparse.Namespace, name: str | None = None):
    """Return the dictionary `name`, or that of --dictionary, on the device of --device."""
    from rahf.interpret.features.checkpoints import load_dictionary

    found = load_dictionary(name or options.dictionary, device(options))
    _note_few_steps(name or options.dictionary)
    return found


def _note_few_steps(name: str) -> None:
    """Report a dictionary of our own whose training, recorded beside it, was too short."""
    from rahf.artifacts import STAGE_FILE, expanded, read_object
    from rahf.interpret.features.runs import FEW_STEPS

    record = expanded(name).parent / STAGE_FILE
    made_with = read_object(record).get("settings", {}) if record.is_file() else {}
    if not {"tokens", "batch_tokens"} <= made_with.keys():
        return
    steps = made_with["tokens"] // made_with["batch_tokens"]
    if steps < FEW_STEPS:
        print(
            f"note: {name} was trained for {steps} {'step' if steps == 1 else 'steps'}, too few to "
            f"settle (about {FEW_STEPS}); its features may be due to chance.",
            file=sys.stderr,
        )


def reading(
    options: argparse.Namespace,
    model: str | None = None,
    dictionary: str | None = None,
    *,
    differences: bool = False,
) -> Reading:
    """Return what --model and --dictionary name, or the model and dictionary of these names.

    Args:
        differences: the dictionary may be of differences between two models.

    Raises:
        ValueError: the dictionary is of another model, or of differences.
    """
    from rahf.interpret.features.bases import check_base
    from rahf.models.adapters import pad_id

    found = dictionary_of(options, dictionary)
    if not differences:
        check_of_states(found, dictionary or options.dictionary)
    loaded = load(options, model)
    check_base(found, loaded.model)
    return Reading(loaded.model, loaded.tokenizer, found, pad_id(loaded.tokenizer))


def check_of_states(dictionary, name: str) -> None:
    """Raise ValueError where the dictionary is of differences."""
    if dictionary.origin.kind == "differences":
        raise ValueError(
            f"{name} is a dictionary of differences between two models, so a single model has no "
            "activations of its features; give a dictionary of states."
        )


def with_tokens(rows: Sequence[dict[str, Any]], read: Reading) -> list[dict[str, Any]]:
    """Return rows of figures of features with the tokens whose logits they raise and lower."""
    import torch

    from rahf.interpret.explanations.tokens import TokenTexts
    from rahf.interpret.features.logit_effects import logit_effects

    if not rows:
        return []
    directions = read.dictionary.directions
    latents = torch.tensor([row["feature"] for row in rows], device=directions.device)
    effects = logit_effects(read.model, directions[latents], TOKENS)
    shown = TokenTexts(read.tokenizer).shown
    named = [
        {name: [shown(token) for token in tokens] for name, tokens in both}
        for both in (
            (("raises", raised), ("lowers", lowered))
            for raised, lowered in zip(
                effects.raised.tolist(), effects.lowered.tolist(), strict=True
            )
        )
    ]
    return [row | tokens for row, tokens in zip(rows, named, strict=True)]


def check_features(options: argparse.Namespace, dictionary) -> None:
    """Raise ValueError where the dictionary lacks a feature that --feature names."""
    for latent in options.feature:
        if latent >= dictionary.latents:
            raise ValueError(
                f"--feature {latent}: the dictionary has features 0 to {dictionary.latents - 1}."
            )


def print_dictionary_figures(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], tuple[Mapping[str, Any], str]],
) -> int:
    """Measure, write the figures with the dictionary's name where --output names a file, and print
    the table.
    """

    def named(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
        figures, table = measure(options)
        return {"dictionary": options.dictionary, **figures}, table

    return print_figures(options, named)
