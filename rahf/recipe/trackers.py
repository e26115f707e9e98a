"""Names that `report_to` takes, and the packages that they need.

Knows no other key.
"""

import ast
import functools
import importlib.util

from rahf.recipe.transformers_source import parse_source


@functools.cache
def trackers() -> tuple[str, ...]:
    """Return names that `report_to` takes. Raises RuntimeError when the source is not found."""
    for node in parse_source("integrations/integration_utils.py").body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            [target] = node.targets
            if isinstance(target, ast.Name) and target.id == "INTEGRATION_TO_CALLBACK":
                return tuple(key.value for key in node.value.keys)
    raise RuntimeError("integration_utils.py of the installed transformers holds no trackers")


def tracker_problems(report_to: str | list | None) -> list[str]:
    """Return names of `report_to` that the Trainer would refuse when the model has been loaded."""
    if report_to in ("none", "all", ["none"], ["all"]):
        return []
    names = report_to if isinstance(report_to, list) else [report_to]
    return [
        f"report_to: {name!r} is not a tracker of transformers: give one or more of "
        f"{', '.join(trackers())}, or only all or none"
        for name in names
        if name not in trackers()
    ]


# Packages of the trackers whose module has another name; one of the listed is enough.
_TRACKER_MODULES = {
    "azure_ml": ("azureml",),
    "flyte": ("flytekit",),
    "tensorboard": ("tensorboard", "tensorboardX"),
}


def missing_trackers(report_to: str | list | None) -> list[str]:
    """Return a problem for each tracker of `report_to` that is not installed here."""
    names = report_to if isinstance(report_to, list) else [report_to]
    modules = {name: _TRACKER_MODULES.get(name, (name,)) for name in names if name in trackers()}
    return [
        f"report_to: {name} is not installed: pip install {any_of[0]}, or set report_to: none"
        for name, any_of in modules.items()
        if not any(map(importlib.util.find_spec, any_of))
    ]
