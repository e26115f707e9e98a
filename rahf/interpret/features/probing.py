"""k-sparse probing: how well a few latents distinguish labelled texts, beside a dense probe and the
same probes on an untrained model (Gurnee et al. 2023, arXiv 2305.01610).

Latents are ranked and probes are fitted on training texts; everything reported is of held-out
texts. Knows numbers only; `labelled` has texts and models.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from rahf.evaluation.intervals import Estimate, share_estimate
from rahf.interpret.features.dictionary import SparseCodes
from rahf.interpret.features.firing import chosen_activations
from rahf.interpret.features.probes import area, logistic

KS = (1, 2, 4, 8, 16)
TEST_SHARE = 0.3
LEAST_OF_A_CLASS = 10
"""Texts of each label that are needed: fewer leave held-out figures without meaning."""

RIDGE = 1e-2  # of the sparse probes, per standardised feature and text
DENSE_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Those of the dense probe, of which a part of the training texts chooses one."""


class Probed(NamedTuple):
    """Held-out figures of one probe."""

    accuracy: Estimate  # Wilson's interval
    auc: Estimate  # Newcombe's interval
    latents: list[int]  # those that the probe reads; empty for a dense probe


class Split(NamedTuple):
    """Which texts are fitted to, and which are measured."""

    train: Int[Tensor, " train"]
    test: Int[Tensor, " test"]


def split_labels(labels: Bool[Tensor, " texts"], seed: int) -> Split:
    """Return a random split with the same share of both labels on either side.

    Raises:
        ValueError: a label with too few texts.
    """
    random, sides = np.random.default_rng(seed), ([], [])
    for label in (False, True):
        texts = (labels == label).nonzero().squeeze(1).numpy()
        if len(texts) < LEAST_OF_A_CLASS:
            raise ValueError(
                f"{len(texts)} of {len(labels)} texts have the label {int(label)}; a probe needs "
                f"at least {LEAST_OF_A_CLASS} texts of each label."
            )
        order = random.permutation(texts)
        count = round(TEST_SHARE * len(texts))
        sides[0].append(order[count:])
        sides[1].append(order[:count])
    return Split(*(torch.from_numpy(np.sort(np.concatenate(side))) for side in sides))


def pooled(codes: SparseCodes, owners: Int[Tensor, " tokens"], texts: int) -> SparseCodes:
    """Return the mean activation of every latent over the tokens of each text, as sparse codes.

    Args:
        owners: text of each token, ascending.
    """
    counts = torch.bincount(owners, minlength=texts).clamp(min=1)
    places = owners[codes.owners()] * codes.latents + codes.indices.long()
    known, entries = places.unique(return_inverse=True)
    sums = codes.values.new_zeros(len(known)).index_add_(0, entries, codes.values)
    text, latent = known // codes.latents, known % codes.latents
    offsets = torch.nn.functional.pad(torch.bincount(text, minlength=texts).cumsum(0), (1, 0))
    return SparseCodes(offsets, latent.int(), sums / counts[text], codes.latents)


def ranked_latents(
    codes: SparseCodes, labels: Bool[Tensor, " texts"], train: Int[Tensor, " train"]
) -> Int[Tensor, " latents"]:
    """Return latents by how far apart their means of both labels are, in standard deviations.

    Latents that are active in no training text are omitted.
    """
    inside = torch.zeros(codes.tokens, dtype=torch.bool)
    inside[train] = True
    owners = codes.owners()
    kept = inside[owners]
    indices, values = codes.indices.long()[kept], codes.values[kept].double()
    of_label = labels[owners[kept]]
    sums, squares, positive = torch.zeros(3, codes.latents, dtype=torch.double)
    sums.index_add_(0, indices, values)
    squares.index_add_(0, indices, values.square())
    positive.index_add_(0, indices, values * of_label)
    count, labelled = len(train), int(labels[train].sum())
    apart = positive / labelled - (sums - positive) / (count - labelled)
    spread = (squares / count - (sums / count).square()).clamp(min=0).sqrt()
    active = spread > 0
    size = torch.where(active, apart.abs() / spread.clamp(min=1e-12), -torch.ones_like(spread))
    return size.argsort(descending=True, stable=True)[: int(active.sum())]


def probe_latents(
    codes: SparseCodes, labels: Bool[Tensor, " texts"], split: Split, ks: Sequence[int] = KS
) -> dict[int, Probed]:
    """Return a probe on the `k` best latents, for each k that there are latents for."""
    order = ranked_latents(codes, labels, split.train)
    found = {}
    for k in ks:
        if k <= len(order):
            features = chosen_activations(codes, order[:k])
            scores = _scores(features, labels, split, RIDGE)
            found[k] = _figures(scores, labels[split.test], order[:k].tolist())
    return found


def probe_dimensions(
    hidden: Float[Tensor, "texts d_model"],
    labels: Bool[Tensor, " texts"],
    split: Split,
    ks: Sequence[int] = KS,
) -> dict[int, Probed]:
    """Return the same probes on single dimensions of hidden states."""
    texts, width = hidden.shape
    offsets = torch.arange(texts + 1) * width
    indices = torch.arange(width, dtype=torch.int32).repeat(texts)
    codes = SparseCodes(offsets, indices, hidden.flatten(), width)
    return probe_latents(codes, labels, split, ks)


def probe_densely(
    hidden: Float[Tensor, "texts d_model"], labels: Bool[Tensor, " texts"], split: Split
) -> Probed:
    """Return a probe on complete hidden states; its ridge is chosen within the training texts."""
    cut = split.train[torch.arange(len(split.train)) % 4 == 0]
    rest = split.train[torch.arange(len(split.train)) % 4 != 0]
    inner = Split(rest, cut)
    areas = [
        area(_scores(hidden, labels, inner, ridge), labels[cut]).mean for ridge in DENSE_RIDGES
    ]
    ridge = DENSE_RIDGES[int(np.argmax(areas))]
    return _figures(_scores(hidden, labels, split, ridge), labels[split.test], [])


def _scores(
    features: Float[Tensor, "texts features"],
    labels: Bool[Tensor, " texts"],
    split: Split,
    ridge: float,
) -> Float64[Tensor, " test"]:
    """Return log odds of held-out texts under a logistic regression on standardised features."""
    features = features.double()
    mean, spread = features[split.train].mean(0), features[split.train].std(0, correction=0)
    features = (features - mean) / spread.clamp(min=1e-9)
    weights = logistic(features[split.train], labels[split.train], ridge)
    return features[split.test] @ weights[:-1] + weights[-1]


def _figures(scores: Tensor, labels: Tensor, latents: list[int]) -> Probed:
    right = ((scores > 0) == labels).double().tolist()
    return Probed(share_estimate(right), area(scores, labels), latents)


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
