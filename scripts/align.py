"""The stages of a recipe under `accelerate launch`, which starts one of these per device.

accelerate launch scripts/align.py --config RECIPE.yaml [--stage NAME] [--KEY VALUE ...]
"""

import argparse

from rahf.cli import run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml", help="file of the recipe")
    options, others = parser.parse_known_args()
    run(["align", options.config, *others])
