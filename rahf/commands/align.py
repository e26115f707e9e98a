"""`rahf align`: run the stages of a recipe, in this process or on several ranks."""

import argparse

from rahf.commands.options.parsers import launch_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; the help ends with every key of a recipe."""
    from rahf.recipe.reference import as_text

    parser.usage = (
        "rahf align RECIPE.yaml [--stage NAME] [--accelerate_config NAME] [--KEY VALUE ...]"
    )
    parser.add_argument("--stage", metavar="NAME", help="run only this stage")
    launch_options(parser)
    parser.epilog = f"{parser.epilog}\n\n{as_text()}"


def run(recipe, options: argparse.Namespace) -> int:
    if options.accelerate_config is not None:
        return _on_ranks(options)
    if options.num_processes is not None:
        raise ValueError(
            "--num_processes is the number of processes that --accelerate_config starts; give "
            "both, as in --accelerate_config ddp --num_processes 8"
        )
    from rahf.distributed.sigterm import handling_sigterm, leave
    from rahf.pipeline.run import run_pipeline

    with handling_sigterm(leave):
        run_pipeline(recipe, stage=options.stage)
    return 0


def _on_ranks(options: argparse.Namespace) -> int:
    from rahf.distributed.accelerate import find_config, read_launch
    from rahf.distributed.launching import launch

    config = find_config(options.accelerate_config)
    read_launch(str(config), options.num_processes)  # refuses what cannot be launched
    arguments = ["align", str(options.recipe), *options.overrides]
    arguments += ["--stage", options.stage] if options.stage else []
    arguments += ["--traceback"] if options.traceback else []
    return launch(config, options.num_processes, arguments)
