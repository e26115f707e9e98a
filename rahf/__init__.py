"""Representation alignment from human feedback: preference pairs in, an adapter out.

Importing this package loads nothing: every name below is fetched when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from rahf.directions.steering import steer
    from rahf.directions.vectors import Directions
    from rahf.guards.monitor import DirectionMonitor
    from rahf.guards.prevention import prevent
    from rahf.recipe.methods import preset
    from rahf.recipe.recipe import load_recipe
    from rahf.trainer import RAHFTrainer
    from rahf.trainer_config import RAHFConfig

    __version__: str

_HOME = {
    "DirectionMonitor": "rahf.guards.monitor",
    "Directions": "rahf.directions.vectors",
    "RAHFConfig": "rahf.trainer_config",
    "RAHFTrainer": "rahf.trainer",
    "load_recipe": "rahf.recipe.recipe",
    "preset": "rahf.recipe.methods",
    "prevent": "rahf.guards.prevention",
    "steer": "rahf.directions.steering",
}

__all__ = [
    "DirectionMonitor",
    "Directions",
    "RAHFConfig",
    "RAHFTrainer",
    "load_recipe",
    "preset",
    "prevent",
    "steer",
]


if not TYPE_CHECKING:  # which would take every name for known

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("rahf")
        if name not in _HOME:
            raise AttributeError(f"module 'rahf' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
