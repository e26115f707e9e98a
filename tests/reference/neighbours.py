"""The neighbours' losses written out from their formulas: loops over layers, tokens and entries.

States are those of `reference.objective`: {layer: [[float] * d_model] * tokens}.
"""

import math

from reference.objective import mean, squared_norm


def cosine(first, second):
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return product / math.sqrt(squared_norm(first) * squared_norm(second))


def over_tokens(policy, target, of_token):
    """Return the mean over layers of the mean over tokens of `of_token(layer, policy, target)`."""
    return mean(
        mean(
            of_token(layer, h, wanted)
            for h, wanted in zip(policy[layer], target[layer], strict=True)
        )
        for layer in policy
    )


def breaking(policy, reference):
    """Compute circuit breakers: relu(cos(h, h_ref))."""
    return over_tokens(policy, reference, lambda _, h, start: max(0.0, cosine(h, start)))


def distance(policy, target, units, squared):
    """Compute |h - target| / unit, or its square."""

    def of_token(layer, h, wanted):
        error = squared_norm([a - b for a, b in zip(h, wanted, strict=True)])
        return error / units[layer] ** 2 if squared else math.sqrt(error) / units[layer]

    return over_tokens(policy, target, of_token)


def everywhere(vectors, states):
    """Return the same vector at every token: {layer: [vector] * tokens}."""
    return {layer: [vectors[layer]] * len(tokens) for layer, tokens in states.items()}


def unlike(states, others):
    """Compute RepBend's similarity term of one row: 1 - cos to each of the others, at the first
    state.
    """
    if not others:
        return 0.0
    return mean(
        1 - cosine(states[layer][0], other[layer][0]) for layer in states for other in others
    )
