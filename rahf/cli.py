"""The command `rahf`: align, data, plan, prepare, validate.

Parses and prints; what a command does is imported when it is run, so that `rahf validate` and
`--help` come without torch.
"""

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

OVERRIDES = (
    "Every key of the recipe can be set anew: --alpha 3, --teachers.learning_rate=1e-4, --bf16\n"
    "(true). Values are read as YAML."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: 0, 1 (not valid), 2 (cannot be run)."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    # PEFT asks transformers by a name that it is giving up: nothing that a user could mend.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    options, overrides = _parser("align" in given[:1]).parse_known_args(given)
    try:
        return options.run(options, overrides)
    except (ValueError, OSError) as error:
        if options.traceback:
            traceback.print_exc()
        print(f"error: {_told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


def _told(error: Exception) -> str:
    # Text without the number that the system gives an error: "No space left on device: 'x'".
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _parser(with_keys: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rahf",
        description="Preference pairs in, aligned adapter out.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    align = _command(commands, "align", "run the stages of a recipe that are not done yet", _align)
    align.add_argument("--stage", metavar="NAME", help="run this stage alone")
    if with_keys:
        from rahf.recipe.reference import as_text

        align.epilog = f"{align.epilog}\n\n{as_text()}"
    _command(commands, "data", "show what a recipe's data becomes: counts, lengths, rows", _data)
    _command(commands, "prepare", "tokenise a recipe's data into the cache, nothing else", _prepare)
    _plan_options(
        _command(commands, "plan", "tell what a recipe will cost, without loading weights", _plan)
    )
    _command(commands, "validate", "tell every problem of a recipe, without running it", _validate)
    return parser


def _command(commands, name: str, help: str, run) -> argparse.ArgumentParser:
    stage = " [--stage NAME]" if name == "align" else ""
    parser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=OVERRIDES,
        usage=f"rahf {name} RECIPE.yaml{stage} [--KEY VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", type=Path, help="file of the recipe")
    # Not named --debug: that is a key of TrainingArguments.
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=os.environ.get("RAHF_DEBUG", "0") not in ("", "0"),
        help="show where an error came from (also: RAHF_DEBUG=1)",
    )
    parser.set_defaults(run=run)
    return parser


def _plan_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--accelerate_config", metavar="NAME", help="a file, or NAME of accelerate_configs/")
    add("--num_processes", metavar="N", type=int, help="processes, one a device")
    add("--device_memory", metavar="GIB", type=float, help="refuse what does not fit into it")
    add("--rows", metavar="N", type=int, help="training rows, where they cannot be counted")
    add("--mean_tokens", metavar="N", type=float, help="tokens of a row, padding included")
    add("--model_config", metavar="FILE", type=Path, help="config.json in place of the model's")


class _Version(argparse.Action):
    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser, *_):
        import rahf

        print(rahf.__version__)
        parser.exit()


def _align(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.validation import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    from rahf.pipeline import run_pipeline

    run_pipeline(recipe, stage=options.stage)
    return 0


def _data(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.validation import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    from rahf.pipeline import describe_data

    print(describe_data(recipe))
    return 0


def _prepare(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.validation import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    from rahf.plan.prepare import prepare

    print(prepare(recipe))
    return 0


def _plan(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.plan.command import PlanOptions, plan
    from rahf.recipe.validation import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    chosen = PlanOptions(**{name: getattr(options, name) for name in PlanOptions._fields})
    text, refusal = plan(recipe, chosen)
    print(text)
    if refusal is not None:
        raise refusal
    return 0


def _validate(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.reading import RecipeError
    from rahf.recipe.validation import checked_recipe, summary

    try:
        recipe = checked_recipe(options.recipe, overrides)
    except RecipeError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    print(f"ok: {options.recipe}\n{summary(recipe)}")
    return 0
