"""Evidence for directions, per layer: the table and the figure of `rahf directions`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rahf.report.tables import markdown


def evidence_table(evidence: Mapping[str, Any]) -> str:
    """One row a layer: held-out separability (AUC), norm of the saved vector as a share of the
    residual's RMS, cosine of the two halves of the data, cosine between fits.
    """
    saved = evidence["made_with"]["fit"]
    norm = {f"{saved} / rms": evidence["norm"][saved]}
    groups = (
        ("AUC ", evidence["separability"], "{:.3f}"),
        ("", norm, "{:.3f}"),
        ("halves ", evidence["halves"], "{:.2f}"),
        ("", evidence["agreement"], "{:.2f}"),
    )
    columns = [
        (f"{title}{name}", [form.format(value) for value in values])
        for title, group, form in groups
        for name, values in group.items()
    ]
    rows = [
        [str(layer), *(cells[index] for _, cells in columns)]
        for index, layer in enumerate(evidence["layers"])
    ]
    return markdown(["layer", *(title for title, _ in columns)], rows)


def evidence_figure(evidence: Mapping[str, Any], path: Path) -> None:
    """Separability, norm and agreement over the layers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.2), layout="constrained")
    panels = (
        ("separability", "held-out AUC", 0.5),
        ("norm", "norm / residual's rms", 0.0),
        ("halves", "cosine of the two halves", None),
        ("agreement", "cosine between fits", None),
    )
    for axes, (key, title, floor) in zip(figure.subplots(1, 4), panels, strict=True):
        for name, values in evidence[key].items():
            axes.plot(evidence["layers"], values, ".-", label=name)
        axes.set(xlabel="layer", title=title)
        if floor is not None:
            axes.axhline(floor, color="grey", linewidth=0.5)
        if evidence[key]:
            axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)
