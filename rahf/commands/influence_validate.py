"""`rahf influence validate`: influence and its rivals against retraining."""

import argparse
import time
from pathlib import Path

from rahf.commands.options.influence import (
    asked_of,
    held_training,
    influence_options,
    question_options,
    settings_of,
)

EPILOG = """\
The adapter is trained again by the project's trainers: on random halves of its pairs (--halves),
without the pairs that support or oppose the queries most (--without), and with the sides of some
pairs flipped (--flipped). FOLDER keeps every retraining, so that a stopped run resumes, and
validation.json. 0 leaves a part out."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    influence_options(parser)
    question_options(parser)
    option("--output", required=True, metavar="FOLDER", type=Path, help="folder of the results")
    option(
        "--halves",
        metavar="N",
        type="count from zero",
        default=16,
        help="random halves to train on (default: 16)",
    )
    option(
        "--without",
        metavar="N",
        type="count from zero",
        default=10,
        help="pairs that are left out together (default: 10)",
    )
    option(
        "--flipped",
        metavar="SHARE",
        type="number from zero",
        default=0.2,
        help="share of the pairs whose sides are flipped; needs --pairs (default: 0.2)",
    )
    option(
        "--seeds",
        metavar="N",
        type="count",
        default=1,
        help="retrainings by each --without (default: 1)",
    )


def run(options: argparse.Namespace) -> int:
    from accelerate import PartialState

    from rahf.influence.trained import check_remaining
    from rahf.records.command_line import write_result
    from rahf.report.influence import validation_text

    if options.flipped >= 1:
        raise ValueError(f"--flipped {options.flipped} is not a share below 1.")
    settings = settings_of(options)
    with held_training(options, options.output) as training:
        changed = {"--without": options.without}
        if options.flipped and options.pairs is not None:
            changed["--flipped"] = options.flipped
        check_remaining(training, changed)
        found = _validated(options, training, settings)
        if PartialState().is_main_process:
            write_result(options.output / "validation.json", options.command, found)
            print(validation_text(found))
    return 0


def _validated(options: argparse.Namespace, training, settings) -> dict:
    from rahf.influence.files import rivals_of
    from rahf.influence.queries import ask
    from rahf.influence.records import rankings
    from rahf.influence.run import POLICY_STAGE, fit_stage, score_all
    from rahf.influence.validation import (
        Retrainings,
        datamodelling_scores,
        flip_recovery,
        leave_out,
        step_agreement,
        with_random,
    )
    from rahf.models.adapters import pad_id

    begun = time.process_time()
    fitted = fit_stage(training, POLICY_STAGE, settings)
    questions, size = asked_of(options, fitted.subject), options.batch_size
    model, pad = fitted.subject.objective.model, pad_id(fitted.subject.tokenizer)
    asked = ask(model, fitted.parts, questions.queries, pad, size, questions.values)
    influence = score_all(fitted, asked, settings)
    seconds = time.process_time() - begun
    retrainings = Retrainings(training, questions, options.output / "retrained", size)
    found = {"adapter": str(options.adapter), "curvature": options.curvature}
    found["cpu_seconds"] = round(seconds, 2)  # to fit, unless that was done before, and to score
    found["steps"] = step_agreement(fitted, influence, questions, 5, size)
    if options.halves:
        its = rivals_of(fitted, influence, questions.queries, settings, None)
        rivals = rankings(influence, its)
        given = (influence.rows, with_random(rivals), options.halves)
        found["datamodelling"] = datamodelling_scores(retrainings, *given)
    if options.without:
        found["leave_out"] = leave_out(
            retrainings, influence, options.without, range(options.seeds)
        )
    if options.flipped and options.pairs is not None:
        given = (influence.rows, options.flipped, 0, settings)
        found["flips"] = flip_recovery(retrainings, *given)
    return found
