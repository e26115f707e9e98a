"""What decompositions, movements and probes show, as plain figures for a file and a table.

Knows results; knows no model, no text and no file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rahf.interpret.features.held_out import Found
from rahf.interpret.features.movement import FALSE_DISCOVERIES, Moved, moved_count, ranked
from rahf.interpret.features.probing import Probed
from rahf.interpret.features.pursuit import Band, Pursuit, terms_above
from rahf.interpret.features.rivals import seen


def decomposition_figures(pursuit: Pursuit, band: Band) -> dict[str, Any]:
    """Return the terms of the first target of a pursuit, beside the band."""
    explained = pursuit.explained[0]
    return {
        "terms": [
            {"feature": feature, "coefficient": coefficient, "r2": r2}
            for feature, coefficient, r2 in zip(
                pursuit.latents[0].tolist(),
                pursuit.coefficients[0].tolist(),
                explained.tolist(),
                strict=True,
            )
        ],
        "random": {
            "vectors": band.vectors,
            **{name: getattr(band, name).tolist() for name in ("low", "median", "high")},
        },
        "terms_above_random": terms_above(explained, band),
    }


def movement_figures(
    found: Found, directions, adapters: Sequence[str], placebos: Sequence[str], top: int
) -> dict[str, Any]:
    """Return everything that `rahf features diff` reports.

    Args:
        directions: of the dictionary.
        adapters: the reported one first, then the seeds beside it.
        placebos: adapters trained on shuffled pairs.
        top: features that are listed.
    """
    moved, fitted = found.moved, found.rivals.fitted()
    order = ranked(moved)[:top].tolist()
    rows = []
    for latent in order:
        row = feature_figures(moved, latent, adapters, placebos)
        shown = seen(fitted, directions[latent], moved.divergence[latent].item())
        rows.append(row | {"rivals": shown._asdict(), "seen_by": shown.by()})
    first = moved.changes[adapters[0]]
    return {
        "prompts": moved.prompts,
        "tokens": moved.tokens,
        "features_tested": int(moved.tested.sum()),
        "moved": {name: moved_count(moved.changes[name]) for name in (*adapters, *placebos)},
        "beyond_placebo": None if moved.band is None else int(beyond(moved, first).sum()),
        "placebo_band": moved.band,
        "fit": found.fit,
        "fits_aligned_worse": found.fits_worse(),
        "explained": {
            "dictionary": shares(found.explained),
            **{_rival(name): shares(part) for name, part in found.rivals.explained.items()},
        },
        "separability": found.rivals.separability(),
        "token_kl": found.divergence.as_dict(),
        "unseen_by_rivals": sum(not row["seen_by"] for row in rows[:10] if row["moved"]),
        "features": rows,
    }


def shares(explained) -> dict[str, float]:
    return {"of_squared_norm": explained.share(), "of_variance": explained.variance()}


def _rival(name: str) -> str:
    return "mean difference" if name == "mean" else f"mean and {name} principal components"


def beyond(moved: Moved, change):
    """Return which tested latents moved beyond the placebo's band."""
    found = moved.tested & (change.q < FALSE_DISCOVERIES)
    return found if moved.band is None else found & (change.size.abs() > moved.band)


def feature_figures(
    moved: Moved, latent: int, adapters: Sequence[str], placebos: Sequence[str]
) -> dict[str, Any]:
    """Return the figures of one feature."""
    change = moved.changes[adapters[0]]
    alike = [
        name
        for name in adapters
        if moved.changes[name].q[latent] < FALSE_DISCOVERIES
        and moved.changes[name].size[latent] * change.size[latent] > 0
    ]
    return {
        "feature": latent,
        "effect": change.effect.mean[latent].item(),
        "low": change.effect.low[latent].item(),
        "high": change.effect.high[latent].item(),
        "q": change.q[latent].item(),
        "size": change.size[latent].item(),
        "placebo_size": [moved.changes[name].size[latent].item() for name in placebos],
        "moved": bool(beyond(moved, change)[latent]),
        "seeds_alike": [len(alike), len(adapters)],
        "rate": [moved.base_rate[latent].item(), change.rate[latent].item()],
        "tracks": moved.tracks(latent),
    }


def probe_figures(probed: Mapping[str, Mapping[int, Probed] | Probed]) -> dict[str, Any]:
    """Return held-out accuracy and AUC of every probe, by its name and its k."""
    found: dict[str, Any] = {}
    for name, probes in probed.items():
        if isinstance(probes, Probed):
            found[name] = _probe(probes)
        else:
            found[name] = {str(k): _probe(probe) for k, probe in probes.items()}
    return found


def _probe(probe: Probed) -> dict[str, Any]:
    figures = {"accuracy": probe.accuracy.as_dict(), "auc": probe.auc.as_dict()}
    return figures | ({"features": probe.latents} if probe.latents else {})
