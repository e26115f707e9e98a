"""Where the folders that ship with the package are: in a wheel within it, in a clone beside it.

`scripts/shipped_folders.py` puts them into the wheel. Imports nothing of the project.
"""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
RECIPES = "recipes"
ACCELERATE_CONFIGS = "accelerate_configs"


def shipped_folder(name: str) -> Path:
    """Return the folder of that name: within the package, or beside it in a clone."""
    within = Path(__file__).parent / name
    return within if within.is_dir() else PACKAGE.parent / name
