"""Evidence for directions, per layer: the table and the chart of `rahf directions`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rahf.report.tables import markdown


def evidence_text(evidence: Mapping[str, Any]) -> str:
    """Return all tables of the evidence."""
    parts = [evidence_table(evidence)]
    if "effect" in evidence:
        parts.append(effect_table(evidence["effect"]))
    return "\n\n".join(parts)


def effect_table(effect: Mapping[str, Any]) -> str:
    """Return the share of an adapter's effect on predictions that constant vectors explain."""
    title = f"Effect on held-out predictions: {effect['nats']:.4f} nats per token"
    rows = [[name, f"{share:.2f}"] for name, share in effect["explained"].items()]
    return f"{title}\n\n{markdown(['steered', 'share explained'], rows)}"


def evidence_table(evidence: Mapping[str, Any]) -> str:
    """Return one row a layer.

    Its columns: held-out separability (AUC), norm of the saved vector as a share of the residual's
    RMS norm, share of the held-out differences that it explains as a constant, cosine of the two
    halves of the data, cosine between fits.
    """
    saved = evidence["made_with"]["fit"]
    norm = {f"{saved} / rms": evidence["norm"][saved]}
    explained = {f"{saved} explains": evidence["explained"][saved]}
    groups = (
        ("AUC ", evidence["separability"], "{:.3f}"),
        ("", norm, "{:.3f}"),
        ("", explained, "{:.2f}"),
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


def choice_table(choice: Mapping[str, Any]) -> str:
    """Return the windows that were compared, the chosen one first, and the reason for it."""
    forms = (
        ("separability", "AUC", "{:.3f}"),
        ("alpha", "alpha", "{:.3g}"),
        ("share_of_rms", "shift / rms", "{:.3f}"),
        ("divergence", "KL on neutral text", "{:.3f}"),
        ("margin_gain", "gain of held-out margin", "{:+.3f}"),
    )
    ordered = sorted(choice["candidates"], key=lambda each: each != choice["taken"])
    rows = [
        [
            f"{each['layers'][0]}-{each['layers'][-1]}",
            *(form.format(each[key]) if each[key] is not None else "-" for key, _, form in forms),
        ]
        for each in ordered
    ]
    taken = choice["taken"]
    reason = (
        f"chosen: layers {taken['layers'][0]}-{taken['layers'][-1]}, alpha {taken['alpha']:.3g}: "
        "the largest gain of the held-out margin among the layers tried (nats per token, steered "
        f"by {choice['reached']:g} of the shift); budget of the divergence {choice['budget']:g} "
        "nats per token"
    )
    return f"{markdown(['layers', *(title for _, title, _ in forms)], rows)}\n\n{reason}"


def evidence_chart(evidence: Mapping[str, Any], path: Path) -> None:
    """Draw separability, norm and agreement over the layers."""
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
