"""Options of the commands that compute influence, and what they name."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    option("--direct", action="store_true", help="leave out what goes through the teachers")
    _curvature_options(option)


def _curvature_options(option: Callable[..., object]) -> None:
    option(
        "--damping",
        metavar="X",
        type="positive number",
        default=0.1,
        help="damping as a share of the mean curvature (default: 0.1)",
    )
    option(
        "--fit_pairs",
        metavar="N",
        type="count",
        default=2000,
        help="fit the factors of ekfac to at most N pairs, drawn at random (default: 2000)",
    )
    option(
        "--at_minimum",
        action="store_true",
        help="assume that the training reached a minimum: do not add its length to the curvature",
    )
    option(
        "--bf16",
        action="store_true",
        help="multiply matrices in bfloat16 when pairs are read: faster where the processor has it",
    )


def question_options(parser: argparse.ArgumentParser) -> None:
    """Add the queries."""
    option = parser.add_argument
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--responses", metavar="FILE", type=Path, help="prompts with responses")
    asked.add_argument("--pairs", metavar="NAME", help="held-out pairs: a file, folder or Hub id")
    option("--split", metavar="NAME", default="train", help="split of --pairs (default: train)")
    option("--direction", metavar="FOLDER", type=Path, help="project on these directions")
    option("--layer", metavar="N", type="count from zero", help="layer of --direction")
    option("--limit", metavar="N", type="count", help="the first N records")
    parser.set_defaults(check=check_questions)


def check_questions(options: argparse.Namespace) -> None:
    if options.direction is not None and options.responses is None:
        raise ValueError("--direction projects responses: give --responses, not --pairs.")
    if options.layer is not None and options.direction is None:
        raise ValueError("--layer needs --direction: give both or neither.")


def asked_of(options: argparse.Namespace, subject):
    """Return the queries of --responses or --pairs."""
    from rahf.influence.inputs import of_responses, of_rows, pair_rows, projected

    given = (subject.tokenizer, subject.training.recipe.data.chat_template, options.limit)
    if options.responses is None:
        rows = pair_rows(options.pairs, options.split, *given)
        return of_rows(rows, subject.tokenizer)
    questions = of_responses(options.responses, *given)
    if options.direction is None:
        return questions
    return projected(questions, options.direction, options.layer)


def settings_of(options: argparse.Namespace):
    from rahf.influence.run import Settings

    return Settings(
        options.curvature,
        options.factors or options.adapter / "influence",
        options.batch_size,
        options.damping,
        through=not options.direct,
        fit_pairs=options.fit_pairs,
        at_minimum=options.at_minimum,
        bf16=options.bf16,
    )


@contextmanager
def held_training(options: argparse.Namespace, *outputs: Path) -> Iterator:
    """Yield the training of --adapter, while this run with all its ranks holds the folders.

    What could not be checked of the training is printed.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from rahf.influence.trained import read_training
    from rahf.pipeline.stages import output_of_one_run

    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    with ExitStack() as held:
        for folder in (*outputs, settings_of(options).factors):
            held.enter_context(output_of_one_run(folder, on_cpu))
        training = read_training(options.adapter)
        if training.unchecked:
            PartialState().print(UNCHECKED)
        yield training


UNCHECKED = (
    "note: the record of the training holds no identity of its pairs, as for data of the Hub, so "
    "that they are not compared to those that are read now"
)
