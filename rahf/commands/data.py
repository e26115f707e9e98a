"""`rahf data`: what a recipe's data becomes."""

import argparse
import json


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print counts and lengths of each split as JSON"
    )


def run(recipe, options: argparse.Namespace) -> int:
    if options.json:
        from rahf.pipeline.recipe_data import data_figures

        print(json.dumps(data_figures(recipe), indent=2))
        return 0
    from rahf.pipeline.recipe_data import describe_data

    print(describe_data(recipe))
    return 0
