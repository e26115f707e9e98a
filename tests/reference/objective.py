"""The objective written out from its formulas: loops over layers, tokens and vocabulary entries.

Every response is run by itself, without padding, under models of its own; sums are Python floats.
Layers are read from the model's own `output_hidden_states`, whose entry l + 1 is what block l puts
out (the last block's excepted, which is normed there).
"""

import math

import torch


def block_states(model, ids, layers):
    """Return {layer: [[float] * d_model] * tokens}."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return {layer: output.hidden_states[layer + 1][0].tolist() for layer in layers}


def log_probabilities(model, ids, temperature=1.0):
    """Return [[float] * vocabulary] * tokens: entry t is the distribution of token t + 1."""
    with torch.no_grad():
        logits = (model(input_ids=torch.tensor([ids])).logits[0] / temperature).tolist()
    result = []
    for row in logits:
        top = max(row)
        total = math.log(sum(math.exp(value - top) for value in row)) + top
        result.append([value - total for value in row])
    return result


def aligned_positions(prompt, response, positions, tail):
    """Return the positions in prompt + response whose states are aligned."""
    first, end = len(prompt), len(prompt) + len(response)
    if positions == "response":
        return list(range(first, end))
    return list(range(first - tail, end))


def at(states, positions):
    return {layer: [tokens[position] for position in positions] for layer, tokens in states.items()}


def difference(positive, negative):
    return {
        layer: [
            [p - n for p, n in zip(first, second, strict=True)]
            for first, second in zip(positive[layer], negative[layer], strict=True)
        ]
        for layer in positive
    }


def squared_norm(vector):
    return sum(value * value for value in vector)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def orthonormal(vectors):
    """Return an orthonormal basis of what vectors span (Gram and Schmidt)."""
    basis = []
    for vector in vectors:
        left = without([vector], basis)[0]
        size = math.sqrt(squared_norm(left))
        basis.append([value / size for value in left])
    return basis


def dot(first, second):
    return sum(a * b for a, b in zip(first, second, strict=True))


def without(tokens, basis):
    """Return vectors without their parts along an orthonormal basis."""
    left = []
    for token in tokens:
        parts = [(dot(token, axis), axis) for axis in basis]
        left.append(
            [value - sum(part * axis[i] for part, axis in parts) for i, value in enumerate(token)]
        )
    return left


def protect_loss(policy, reference, basis, units):
    """Return the mean over layers of mean over tokens of |movement along the basis|^2 / unit^2."""
    return mean(
        mean(
            sum(dot([a - b for a, b in zip(h, start, strict=True)], axis) ** 2 for axis in axes)
            for h, start in zip(policy[layer], reference[layer], strict=True)
        )
        / units[layer] ** 2
        for layer, axes in basis.items()
    )


def layer_units(reference, shift, alpha, layer_scale):
    """Return {layer: unit}; the shift's unit is never below a thousandth of the reference's."""
    units = {}
    for layer in reference:
        rms = math.sqrt(mean(squared_norm(token) for token in reference[layer]))
        size = math.sqrt(mean(alpha**2 * squared_norm(token) for token in shift[layer]))
        units[layer] = {"none": 1.0, "rms": rms, "shift": max(size, rms / 1000)}[layer_scale]
    return units


def align_loss(policy, reference, shift, alpha, units, distance):
    """Return the mean over layers of mean over tokens of |policy - (reference + alpha shift)| /
    unit.
    """
    per_layer = []
    for layer, unit in units.items():
        per_token = []
        for h, start, v in zip(policy[layer], reference[layer], shift[layer], strict=True):
            error = [
                now - (before + alpha * asked)
                for now, before, asked in zip(h, start, v, strict=True)
            ]
            squared = squared_norm(error)
            per_token.append(
                squared / unit**2 if distance == "squared_l2" else math.sqrt(squared) / unit
            )
        per_layer.append(mean(per_token))
    return mean(per_layer)


def retain_loss(policy, reference, units, distance):
    """Return the same with a shift of zero, in the units of the response beside the text."""
    nothing = difference(reference, reference)
    return align_loss(policy, reference, nothing, 0.0, units, distance)


def kl(reference, policy, predicted):
    """Return the mean over `predicted` positions of the sum over tokens of p (log p - log q)."""
    return mean(
        sum(
            math.exp(p) * (p - q)
            for p, q in zip(reference[position - 1], policy[position - 1], strict=True)
        )
        for position in predicted
    )


def cross_entropy(policy, ids, predicted):
    """Return the mean -log-probability of the tokens at `predicted`, each given all before it."""
    return -mean(policy[position - 1][ids[position]] for position in predicted)


def dpo(chosen, rejected, beta):
    """Return -log sigmoid(beta (chosen - rejected)), each the log-probability of a response under
    the policy minus that under the reference.
    """
    return math.log(1 + math.exp(-beta * (chosen - rejected)))


def contrastive(match, mismatch, smoothing):
    """Return SCIT's -m - (1 - eps) log(P_m / (P_m + P_x)) - eps log(P_x / (P_m + P_x)), P =
    exp(mean).
    """
    p_match, p_mismatch = math.exp(match), math.exp(mismatch)
    total = p_match + p_mismatch
    told_apart = math.log(p_match / total)
    taken_for_other = math.log(p_mismatch / total)
    return -match - (1 - smoothing) * told_apart - smoothing * taken_for_other
