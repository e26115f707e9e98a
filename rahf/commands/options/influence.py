"""Options of the commands that compute influence, and what they name."""

import argparse
from pathlib import Path

CURVATURES = ("ekfac", "kernel", "cg", "identity")


def influence_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option(
        "--adapter",
        required=True,
        metavar="FOLDER",
        type=Path,
        help="output folder of rahf align or rahf dpo, or of a teacher",
    )
    option(
        "--curvature",
        choices=CURVATURES,
        default=CURVATURES[0],
        help=f"what replaces the Hessian of the training (default: {CURVATURES[0]})",
    )
    option(
        "--factors",
        metavar="FOLDER",
        type=Path,
        help="folder of the fitted curvature (default: influence in the adapter's folder)",
    )
    option("--batch_size", metavar="N", type="count", default=8, help="pairs at once (default: 8)")
    option(
        "--damping",
        metavar="X",
        type="positive number",
        default=0.1,
        help="damping as a share of the mean curvature (default: 0.1)",
    )
    option("--direct", action="store_true", help="leave out what goes through the teachers")


def settings_of(options: argparse.Namespace):
    from rahf.influence.run import Settings

    return Settings(
        options.curvature,
        options.factors or options.adapter / "influence",
        options.batch_size,
        options.damping,
        through=not options.direct,
    )


def told_of(training) -> None:
    """Print what could not be checked of a training."""
    if training.unchecked:
        print(
            "note: the record of the training holds no identity of its pairs, as for data of the "
            "Hub, so that they are not compared to those that are read now"
        )
