"""The stages of a recipe under `accelerate launch`, which starts one of these per device.

accelerate launch scripts/align.py --config RECIPE.yaml [--stage NAME] [--KEY VALUE ...]
"""

import argparse
import sys

from rahf.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml", help="file of the recipe")
    options, others = parser.parse_known_args()
    sys.exit(main(["align", options.config, *others]))
