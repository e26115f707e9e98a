"""Dictionaries with known answers, for the tests of what reads them."""

import torch
from tiny_models import D_MODEL, tiny_model_of_bytes

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


def planted_model_and_dictionary(tokenizer):
    """A tiny model whose embeddings of some tokens are large along an axis each, which also raises
    them, and a dictionary whose first latents read these axes after layer 0; others are random.
    """
    model = tiny_model_of_bytes()
    axes, _ = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(1)))
    rules = (str.isdecimal, str.isupper, "?".__eq__)
    with torch.no_grad():
        for token in range(len(tokenizer)):
            text = tokenizer.decode([token]).strip()
            for axis, rule in zip(axes.T, rules, strict=True):
                if rule(text):
                    model.get_input_embeddings().weight[token] += 12 * axis
                    model.get_output_embeddings().weight[token] += axis
    directions = random_dictionary(model, layer=0).directions.clone()
    directions -= directions @ axes @ axes.T
    directions = torch.nn.functional.normalize(directions, dim=1)
    directions[:3] = axes.T
    bias = torch.zeros(len(directions))
    bias[:3] = -6.0
    weights = Weights(directions.clone(), bias, directions, torch.zeros(16))
    origin = Origin("planted", fingerprint_of(model), 0, "residual")
    return model, TopKDictionary(origin, weights, 8)
