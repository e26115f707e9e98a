"""Figures of a run as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def training_figure(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss and reached share over the steps, and the reached share of each layer at the end."""
    from matplotlib.figure import Figure

    steps = [line for line in log if "loss" in line]
    held_out = [line for line in log if "eval_repr/reached" in line]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    loss, reached, layers = figure.subplots(1, 3)
    loss.plot([line["step"] for line in steps], [line["loss"] for line in steps])
    loss.set(xlabel="step", ylabel="loss", title="loss", ylim=(0, None))
    reached.plot(
        [line["step"] for line in steps], [line["repr/reached"] for line in steps], label="training"
    )
    if held_out:
        reached.plot(
            [line["step"] for line in held_out],
            [line["eval_repr/reached"] for line in held_out],
            "o",
            label="held out",
        )
    reached.set(xlabel="step", ylabel="share", title="share of the asked shift reached")
    reached.legend(frameon=False)
    last, prefix = (held_out[-1], "eval_repr") if held_out else (steps[-1], "repr")
    found = sorted(
        int(key.rpartition("_")[2]) for key in last if key.startswith(f"{prefix}/reached/layer_")
    )
    for name in ("reached", "cosine"):
        values = [last[f"{prefix}/{name}/layer_{layer}"] for layer in found]
        layers.plot(found, values, "o-", label=name)
    layers.set(xlabel="layer", title="per layer, at the end", ylim=(0, None))
    layers.legend(frameon=False)
    figure.savefig(path, dpi=120)
