"""The key-value cache as an argument of a model's forward, under the name that the installed
transformers gives it. The only place that knows the name.

transformers 5.24 renamed `past_key_values` to `cache`; 5.40 removes the old name.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from rahf.models.capture import without_adapters

NAMES = ("cache", "past_key_values")
"""The newest name first."""

KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that hold keys and values, a column for each token."""


def cache_name(module: nn.Module) -> str:
    """Return the name of the key-value cache among the arguments of `module.forward`.

    Args:
        module: a decoder or a causal language model without adapters around it.

    Raises:
        ValueError: the forward takes a cache under none of the known names.
    """
    accepted = inspect.signature(type(module).forward).parameters
    for name in NAMES:
        if name in accepted:
            return name
    raise ValueError(
        f"{type(module).__name__}.forward of transformers {transformers.__version__} takes neither "
        f"{' nor '.join(NAMES)}: its key-value cache cannot be read, so that generation with a "
        "shared prefix and steering from a column would be wrong. Use a release of transformers "
        "within the range that rahf declares, or a model that transformers implements."
    )


def given_cache(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Cache | None:
    """Return the cache among the arguments of a call of `module`, under any of its names.

    Raises:
        ValueError: as for `cache_name`.
    """
    name = cache_name(module)
    by_name = [kwargs[known] for known in NAMES if kwargs.get(known) is not None]
    if by_name:
        return by_name[0]
    position = list(inspect.signature(type(module).forward).parameters).index(name) - 1  # self
    return args[position] if position < len(args) else None


def with_cache(model: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """Return the keyword arguments that pass `cache` to `model` and return it updated.

    Raises:
        ValueError: as for `cache_name`.
    """
    return {cache_name(without_adapters(model)): cache, "use_cache": True}


def kept_cache(model: nn.Module, output: Mapping[str, Any]) -> Cache:
    """Return the cache in the output of a forward made with `with_cache`.

    Raises:
        ValueError: the output holds no cache.
    """
    cache = output.get(cache_name(without_adapters(model)))
    if cache is None:
        raise ValueError(
            f"{type(without_adapters(model)).__name__} returned no key-value cache though "
            "use_cache was on: answers cannot be generated with it."
        )
    return cache


def takes_cache(module: nn.Module) -> bool:
    """Return whether `module.forward` takes a cache under one of the known names."""
    return not set(NAMES).isdisjoint(inspect.signature(type(module).forward).parameters)


def only_keys_and_values(cache: Any) -> bool:
    """Return whether every layer of the cache holds the keys and values of columns, nothing else.

    Such a cache can be filled with a part of another one.
    """
    return type(cache) is DynamicCache and all(
        type(layer) in KEYS_AND_VALUES for layer in cache.layers
    )


def only_recurrent(cache: Any) -> bool:
    """Return whether no layer of the cache holds columns: each holds one state for all it read."""
    return type(cache) is DynamicCache and not any(
        isinstance(layer, CacheLayerMixin) for layer in cache.layers
    )
