"""The chart of a training: loss, and the share of the shift that was reached."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def training_chart(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the loss over the steps, the reached share, and that of each layer at the end.

    Without a shift, the terms of the loss are drawn. A log without steps gets no chart.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [line for line in log if "loss" in line]
    if not steps:
        return
    shifted = "repr/reached" in steps[-1]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    loss, *others = figure.subplots(1, 3 if shifted else 2)
    values = [line["loss"] for line in steps]
    loss.plot([line["step"] for line in steps], values)
    loss.set(xlabel="step", ylabel="loss", title="loss", ylim=(min(0.0, *values), None))
    if shifted:
        _shares(log, steps, *others)
    else:
        _terms(steps, *others)
    for axes in (loss, *others):  # steps and layers are whole numbers
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=120)


def _terms(steps: Sequence[Mapping[str, Any]], axes: Any) -> None:
    for name in (key for key in steps[-1] if key.startswith("repr/")):
        axes.plot(
            [line["step"] for line in steps],
            [line[name] for line in steps],
            label=name.removeprefix("repr/"),
        )
    axes.set(xlabel="step", title="terms, unweighted", yscale="symlog")
    axes.legend(frameon=False)


def _shares(
    log: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]], reached: Any, layers: Any
) -> None:
    held_out = [line for line in log if "eval_repr/reached" in line]
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
    reached.set(xlabel="step", ylabel="share", title="share of the shift reached")
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
