"""Options that steer the model of a command: which directions, how strongly, where."""

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def steering_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument_group("steering with stored directions").add_argument
    option(
        "--directions",
        metavar="FILE",
        action="append",
        default=[],
        help="directions or their folder; may be given again for several at once",
    )
    option(
        "--alpha",
        metavar="X",
        type="strength",
        action="append",
        default=[],
        help="strength: once for all directions, or once for each (default: 1)",
    )
    option(
        "--steering",
        choices=("add", "ablate"),
        default="add",
        help="add the directions, or remove the part along them (default: add)",
    )
    option(
        "--steered_tokens",
        choices=("generated", "all"),
        default="generated",
        help="tokens of the response from the one that predicts it, or the prompt's too (default: "
        "generated)",
    )
    option(
        "--steered_layers",
        metavar="LAYERS",
        help="blocks, as target_layers (default: all that the directions have)",
    )


UNSTEERED = {"alpha": [], "steering": "add", "steered_tokens": "generated", "steered_layers": None}
"""Options that have no effect without directions, with their defaults."""


def steering(options: argparse.Namespace, model: "nn.Module") -> AbstractContextManager:
    """Return the context in which `model` is steered by the options."""
    check_strengths(options)
    if not options.directions:
        return nullcontext()
    from rahf.directions.steering import steer
    from rahf.directions.vectors import Directions
    from rahf.models.adapters import depth_of
    from rahf.recipe.layers import resolve_layers

    directions = [Directions.load(path) for path in options.directions]
    if options.steered_layers:
        layers = resolve_layers(options.steered_layers, depth_of(model))
        directions = [each.only(layers) for each in directions]
    alpha = options.alpha or [1.0]
    return steer(
        model,
        directions,
        alpha[0] if len(alpha) == 1 else alpha,
        mode=options.steering,
        start="generated" if options.steered_tokens == "generated" else None,
    )


def check_strengths(options: argparse.Namespace) -> None:
    """Refuse options that belong to no direction, before anything is loaded."""
    unread = [name for name, default in UNSTEERED.items() if getattr(options, name) != default]
    if unread and not options.directions:
        raise ValueError(
            f"--{unread[0]} steers by --directions, and none are given: give --directions, or omit "
            f"--{unread[0]}."
        )
    missing = next((each for each in options.directions if not Path(each).exists()), None)
    if missing is not None:
        raise ValueError(
            f"--directions: there is no {missing} (working directory: {Path.cwd()}); give what "
            "rahf directions has written."
        )
    given, wanted = len(options.alpha), len(options.directions)
    if given not in (0, 1, wanted):
        raise ValueError(
            f"--alpha is given {given} times and --directions {wanted} times; give one strength "
            "for all directions, or one for each."
        )


def steering_identity(options: argparse.Namespace) -> dict[str, Any]:
    """Return what identifies results of a steered model; empty where the model is not steered."""
    if not options.directions:
        return {}
    from rahf.directions.vectors import Directions

    return {
        "steering": {
            "directions": [
                Directions.load(Path(path)).fingerprint() for path in options.directions
            ],
            "alpha": options.alpha or [1.0],
            "mode": options.steering,
            "tokens": options.steered_tokens,
            "layers": options.steered_layers,
        }
    }
