"""How long a training was: what its length adds to the curvature, so that sizes are in nats.

Gradient descent over the length T, the sum of its learning rates, hardly moves along directions
whose curvature is below 1 / T: it comes to about (H + 1/T)^-1 in place of H^-1. A step of Adam is
the gradient over its root mean square r, so that T is the sum of the rates over r. Reads the log
that the training has left; knows no model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rahf.artifacts import read_lines
from rahf.influence.trained import Training

LOG_FILE = "log.jsonl"


def floor_of(training: Training, parameters: int) -> float:
    """Return 1 / T of a training; 0 where its log holds no gradient norms, or its optimiser is
    neither Adam nor gradient descent.
    """
    path = (training.original or training).folder / LOG_FILE
    return floor_of_log(
        read_lines(path) if path.exists() else [],
        parameters,
        str(training.recipe.training.get("optim", "adamw_torch")),
    )


def floor_of_log(log: Sequence[Mapping[str, Any]], parameters: int, optimizer: str) -> float:
    """Return 1 / T; the steps between logged ones are like these."""
    logged = [line for line in log if "grad_norm" in line and "learning_rate" in line]
    if not logged or not optimizer.startswith(("adam", "sgd")):
        return 0.0
    steps = max(line["step"] for line in log)
    rates = steps * sum(line["learning_rate"] for line in logged) / len(logged)
    square = sum(line["grad_norm"] ** 2 for line in logged) / len(logged) / parameters
    size = 1.0 if optimizer.startswith("sgd") else square**0.5
    return size / rates if rates else 0.0
