"""The name of the key-value cache, by which steering and decoding find it."""

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_model
from torch import nn
from transformers import DynamicCache

from rahf.directions.steering import steer
from rahf.directions.vectors import Directions
from rahf.generation.unfinished import Prefix
from rahf.models.capture import find_blocks
from rahf.models.kv_cache import NAMES, cache_name, given_cache, with_cache


class Renamed(nn.Module):
    """A decoder as a release would have it that renames the cache once more."""

    def forward(self, input_ids, kv_store=None):
        return input_ids


class Positional(nn.Module):
    def forward(self, input_ids, past_key_values=None):
        return input_ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cache_reaches_the_decoder_under_the_name_that_is_read(architecture):
    model, seen = tiny_model(architecture), []
    decoder = find_blocks(model).owner
    decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(given_cache(module, args, kwargs)),
        with_kwargs=True,
    )
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]), **with_cache(model, cache))
        model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=3, pad_token_id=0)
    assert seen[0] is cache
    assert [held.get_seq_length() for held in seen[1:]] == [5, 5, 5]


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_is_found_under_every_known_name_and_by_its_place(name):
    cache = DynamicCache()
    assert given_cache(Positional(), (), {name: cache}) is cache
    assert given_cache(Positional(), (torch.zeros(1), cache), {}) is cache
    assert given_cache(Positional(), (torch.zeros(1),), {name: None}) is None


def test_an_unknown_name_is_an_error_and_not_an_empty_cache():
    with pytest.raises(ValueError, match=r"Renamed.forward .* takes neither cache nor past_key"):
        cache_name(Renamed())


def test_steering_from_a_column_is_refused_where_the_cache_cannot_be_read(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr("rahf.models.kv_cache.NAMES", ("kv_store",))
    directions = Directions((0,), torch.ones(1, model.config.hidden_size))
    with pytest.raises(ValueError, match="cannot be read"), steer(model, directions, start=2):
        pass
    with pytest.raises(ValueError, match="cannot be read"):
        Prefix(model, [5, 6, 7])
