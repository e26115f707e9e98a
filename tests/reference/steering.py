"""Steering as a loop over tokens: one unpadded row at a time, without a cache."""

import torch
from tiny_models import D_MODEL

from rahf.directions.vectors import Directions
from rahf.models.capture import find_blocks

LAYERS = (0, 2)


def some_directions(seed=0, layers=LAYERS, width=D_MODEL):
    vectors = torch.randn(len(layers), width, generator=torch.Generator().manual_seed(seed))
    return Directions(layers, 3 * vectors)


def edited_by_loops(hidden, layer, edits, mode, start):
    """Apply `edits`, pairs of directions and strength, one after the other, token by token."""
    result = hidden.clone()
    for token in range(hidden.shape[1]):
        if start is not None and token < start:
            continue
        for directions, alpha in edits:
            if layer not in directions.layers:
                continue
            vector = directions.vectors[directions.layers.index(layer)]
            if mode == "add":
                result[0, token] += alpha * vector
            else:
                unit = vector / vector.norm()
                result[0, token] -= alpha * (result[0, token] @ unit) * unit
    return result


def logits_by_loops(model, ids, edits, mode="add", start=None):
    """Return the logits [tokens, vocab] of one row, its blocks' outputs edited by a loop."""
    blocks = find_blocks(model).modules
    whole = [block.forward for block in blocks]

    def forward_of(layer):
        def forward(*args, **kwargs):
            output = whole[layer](*args, **kwargs)
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            hidden = edited_by_loops(hidden, layer, edits, mode, start)
            return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

        return forward

    for layer, block in enumerate(blocks):
        block.forward = forward_of(layer)
    try:
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        for block in blocks:
            del block.forward
