"""`rahf align`: run the stages of a recipe, in this process or on several ranks."""

import argparse

from rahf.commands.options.parsers import launch_options, recipe_command


def add(commands, *, with_keys: bool) -> None:
    """Add the command; `with_keys`: its help ends with every key of a recipe."""
    summary = "run the stages of a recipe that are not done yet"
    shown = " [--stage NAME] [--accelerate_config NAME]"
    parser = recipe_command(commands, "align", summary, run, options=shown)
    parser.add_argument("--stage", metavar="NAME", help="run this stage alone")
    launch_options(parser)
    if with_keys:
        from rahf.recipe.reference import as_text

        parser.epilog = f"{parser.epilog}\n\n{as_text()}"


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.recipe.files import checked_recipe

    recipe = checked_recipe(options.recipe, overrides)
    if options.accelerate_config is not None:
        return _on_ranks(options, overrides)
    if options.num_processes is not None:
        raise ValueError(
            "--num_processes says how many processes --accelerate_config starts; give both, as in "
            "--accelerate_config ddp --num_processes 8"
        )
    from rahf.distributed.sigterm import handling_sigterm, leave
    from rahf.pipeline.run import run_pipeline

    with handling_sigterm(leave):
        run_pipeline(recipe, stage=options.stage)
    return 0


def _on_ranks(options: argparse.Namespace, overrides: list[str]) -> int:
    from rahf.distributed.accelerate import find_config, read_launch
    from rahf.distributed.launching import launch

    config = find_config(options.accelerate_config)
    read_launch(str(config), options.num_processes)  # refuses what cannot be launched
    arguments = ["align", str(options.recipe), *overrides]
    arguments += ["--stage", options.stage] if options.stage else []
    arguments += ["--traceback"] if options.traceback else []
    return launch(config, options.num_processes, arguments)
