"""`rahf influence clean`: whether an adapter is better without the pairs that hurt it."""

import argparse
from pathlib import Path

from rahf.commands.options.influence import held_training, influence_options, settings_of

EPILOG = """\
Half of the held-out pairs decide which training pairs are the worst, the other half measures the
accuracy of the retrained adapters. Every arm changes equally many pairs. Proposes only: with
--write, the pairs of the arm that is named by --arm become a new data file."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    option = parser.add_argument
    influence_options(parser)
    option(
        "--pairs", required=True, metavar="NAME", help="held-out pairs: a file, folder or Hub id"
    )
    option("--split", metavar="NAME", default="train", help="split of --pairs (default: train)")
    option("--limit", metavar="N", type="count", help="the first N held-out pairs")
    option("--output", required=True, metavar="FOLDER", type=Path, help="folder of the results")
    option(
        "--share",
        metavar="X",
        type="share",
        default=0.1,
        help="share of the training pairs that an arm changes (default: 0.1)",
    )
    option("--seeds", metavar="N", type="count", default=3, help="retrainings an arm (default: 3)")
    option(
        "--validated_by",
        metavar="FOLDER",
        type=Path,
        help="adapter trained on validation pairs, for the rival LossDiff",
    )
    option(
        "--arms",
        metavar="NAMES",
        help="arms to retrain beside all pairs, by commas (default: every arm)",
    )
    option("--write", metavar="FILE", type=Path, help="new data file with the pairs of --arm")
    option(
        "--arm", metavar="NAME", default="drop worst", help="arm of --write (default: drop worst)"
    )


def run(options: argparse.Namespace) -> int:
    from accelerate import PartialState

    from rahf.influence.trained import check_remaining
    from rahf.records.command_line import write_result
    from rahf.report.influence import cleaning_table

    if options.write is not None and options.write.exists():
        raise ValueError(f"--write {options.write} already exists; give another name.")
    settings = settings_of(options)
    with held_training(options, options.output) as training:
        check_remaining(training, {"--share": options.share})
        arms, found = _compared(options, training, settings)
        if PartialState().is_main_process:
            written = {"adapter": str(options.adapter), **found}
            write_result(options.output / "cleaning.json", options.command, written)
            print(cleaning_table(found["arms"]))
            if options.write is not None:
                print(_written(options, training, arms))
    return 0


def _compared(options: argparse.Namespace, training, settings):
    """Return the arms, and what they came to."""
    from rahf.influence.cleaning import arms_of, compare_arms, halves
    from rahf.influence.files import rivals_of
    from rahf.influence.inputs import of_rows, pair_rows
    from rahf.influence.queries import ask
    from rahf.influence.records import rankings
    from rahf.influence.run import POLICY_STAGE, fit_stage, score_all
    from rahf.models.adapters import pad_id

    fitted = fit_stage(training, POLICY_STAGE, settings)
    subject, size = fitted.subject, options.batch_size
    template = training.recipe.data.chat_template
    rows = pair_rows(options.pairs, options.split, subject.tokenizer, template, options.limit)
    deciding, measuring = halves(rows)
    questions = of_rows(deciding, subject.tokenizer)
    model, pad = subject.objective.model, pad_id(subject.tokenizer)
    asked = ask(model, fitted.parts, questions.queries, pad, size)
    influence = score_all(fitted, asked, settings)
    rivals = rivals_of(fitted, influence, questions.queries, settings, options.validated_by)
    count = max(1, round(options.share * len(influence.rows)))
    arms = _chosen(options, arms_of(influence.rows, rankings(influence, rivals), count))
    folder, seeds = options.output / "retrained", range(options.seeds)
    found = compare_arms(training, arms, measuring, seeds, folder, size)
    return arms, {"pairs": len(influence.rows), "changed": count, "arms": found}


def _chosen(options: argparse.Namespace, arms):
    """Return the arms of --arms and all pairs; refuse an unknown arm before the retrainings."""
    from rahf.influence.cleaning import ALL

    names = [arm.name for arm in arms]
    asked = names if options.arms is None else [name.strip() for name in options.arms.split(",")]
    for option, name in (*(("--arms", name) for name in asked), ("--arm", options.arm)):
        if name not in names:
            raise ValueError(f"{option} {name!r} is not one of {', '.join(names)}.")
    wanted = {ALL, *asked, *([options.arm] if options.write else [])}
    return [arm for arm in arms if arm.name in wanted]


def _written(options: argparse.Namespace, training, arms) -> str:
    from rahf.influence.cleaning import write_cleaned

    by_name = {arm.name: arm.edit for arm in arms}
    count = write_cleaned(training, by_name[options.arm], options.write)
    return f"{options.arm}: {count} pairs in {options.write}"
