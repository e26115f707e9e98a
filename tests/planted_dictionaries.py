"""Dictionaries with known answers, for the tests of what reads them."""

import torch
from tiny_models import D_MODEL

from rahf.interpret.features.bases import fingerprint_of
from rahf.interpret.features.dictionary import Origin
from rahf.interpret.features.topk import TopKDictionary, Weights


def random_dictionary(model=None, layer=1, latents=32, k=6, seed=0, **origin) -> TopKDictionary:
    """Draw tied random unit directions; of `model`, where there is one."""
    width = model.config.hidden_size if model is not None else D_MODEL
    generator = torch.Generator().manual_seed(seed + 100)
    directions = torch.nn.functional.normalize(
        torch.randn(latents, width, generator=generator), dim=1
    )
    weights = Weights(directions.clone(), torch.zeros(latents), directions, torch.zeros(width))
    fingerprint = None if model is None else fingerprint_of(model)
    signed = origin.get("kind") == "differences"
    named = Origin("tiny", fingerprint, layer, **{"site": "residual", **origin})
    return TopKDictionary(named, weights, k, signed)
