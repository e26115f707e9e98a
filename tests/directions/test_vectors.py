import json
import math

import pytest
import torch
from safetensors.torch import save_file

from rahf.directions.vectors import FILE_NAME, Directions, check_finite_states


def some_directions():
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    return Directions((2, 9, 10), vectors, {"method": "dual", "fit": "mean"})


def test_saved_directions_are_loaded_as_they_were(tmp_path):
    directions = some_directions()
    path = directions.save(tmp_path / "new" / "folder")
    assert path.name == FILE_NAME
    for place in (path, path.parent, str(path)):
        loaded = Directions.load(place)
        # Ten blocks or more: layers are ordered as numbers and not as text.
        assert loaded.layers == (2, 9, 10)
        assert torch.equal(loaded.vectors, directions.vectors)
        assert loaded.metadata == directions.metadata


def test_saving_leaves_one_complete_file(tmp_path):
    some_directions().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_failed_save_leaves_the_old_file_as_it_was(tmp_path, monkeypatch):
    directions = some_directions()
    directions.save(tmp_path)

    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rahf.directions.vectors.save_file", half)
    with pytest.raises(OSError, match="No space left"):
        Directions((2,), torch.zeros(1, 5)).save(tmp_path)
    assert torch.equal(Directions.load(tmp_path).vectors, directions.vectors)


def test_layers_are_selected_in_the_order_asked_for():
    directions = some_directions()
    assert torch.equal(directions.select((10, 2)), directions.vectors[[2, 0]])


def test_a_layer_without_a_vector_is_named():
    with pytest.raises(ValueError, match=r"hold layers \[2, 9, 10\].*requests \[3, 11\]"):
        some_directions().select((2, 3, 11))


def test_a_file_of_something_else_is_refused_by_name(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"lm_head.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"model\.safetensors holds no tensors named 'layer\.N'"):
        Directions.load(path)


def test_directions_are_frozen():
    with pytest.raises(AttributeError):
        some_directions().layers = (1,)


def other_directions():
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(5))
    return Directions((2, 9, 10), vectors, {"method": "scit", "fit": "mean"})


def test_directions_are_added_subtracted_and_scaled():
    first, second = some_directions(), other_directions()
    combined = 2 * first - second * 0.5 + -first
    assert torch.allclose(combined.vectors, first.vectors - 0.5 * second.vectors)
    assert combined.layers == first.layers
    # What both were made with is true of the result, what differs is not.
    assert combined.metadata == {"fit": "mean"}
    assert (2 * first).metadata == first.metadata


def test_a_projection_and_what_is_left_of_it_are_orthogonal():
    first, second = some_directions(), other_directions()
    along = first.project(second)
    rest = first - along
    assert torch.allclose(along.cosine(second).abs(), torch.ones(3), atol=1e-5)
    assert torch.allclose(rest.cosine(second), torch.zeros(3), atol=1e-5)
    assert torch.allclose((along + rest).vectors, first.vectors)
    expected = [
        torch.dot(a, b) / (a.norm() * b.norm())
        for a, b in zip(first.vectors, second.vectors, strict=True)
    ]
    assert torch.allclose(first.cosine(second), torch.stack(expected))


def test_a_zero_vector_has_cosine_zero_and_no_projection_onto_it():
    first, nothing = some_directions(), some_directions() * 0.0
    assert torch.equal(first.cosine(nothing), torch.zeros(3))
    assert torch.equal(first.project(nothing).vectors, torch.zeros(3, 5))


def test_increments_add_up_to_the_directions():
    directions = some_directions()
    assert torch.allclose(directions.increments().vectors.cumsum(0), directions.vectors, atol=1e-6)


def test_directions_of_other_layers_or_widths_do_not_go_together():
    directions = some_directions()
    with pytest.raises(ValueError, match=r"layers \[2, 9, 10\] and of layers \[2, 9\] do not go"):
        directions + directions.only((2, 9))
    with pytest.raises(ValueError, match="have 4 dimensions"):
        directions.cosine(Directions((2, 9, 10), torch.zeros(3, 4)))


def written(path, tensors, metadata):
    save_file(tensors, path, {"rahf": json.dumps(metadata)})
    return path


RIGHT = torch.ones(4)


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({"layer.1": torch.tensor([1.0, math.nan])}, {}, r"layers \[1\] are not finite"),
        ({"layer.1": RIGHT, "layer.3": RIGHT * math.inf}, {}, r"layers \[3\] are not finite"),
        ({"layer.1": RIGHT, "layer.2": torch.ones(5)}, {}, "should be vectors of one width"),
        ({"layer.1": torch.ones(2, 2)}, {}, "should be vectors of one width"),
        ({"layer.99": RIGHT}, {"depth": "4"}, "hold layer 99, the model 4 blocks"),
        ({"layer.x": RIGHT}, {}, "no tensors named 'layer.N'"),
        ({"layer.1": RIGHT * 0, "layer.2": RIGHT * 0}, {}, "zero and change nothing"),
        ({"layer.1": RIGHT}, {"depth": "many"}, "depth: 'many', which is not a number of blocks"),
        ({"layer.1": RIGHT}, {"depth": 4}, "metadata are not texts by name"),
        ({"layer.1": RIGHT}, ["depth"], "metadata are not texts by name"),
    ],
)
def test_directions_that_cannot_be_right_are_refused_with_their_file(
    tmp_path, tensors, metadata, said
):
    path = written(tmp_path / "a.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=rf"a\.safetensors.*{said}"):
        Directions.load(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"half a file of something", b"\xff" * 40])
def test_a_damaged_file_is_refused_with_its_name(tmp_path, content):
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=r"safetensors is damaged or not a"):
        Directions.load(tmp_path)


@pytest.mark.parametrize("layers", [(1, 1), (-1, 2)])
def test_layers_are_block_numbers_each_once(layers):
    with pytest.raises(ValueError, match="not block numbers from 0, each once"):
        Directions(layers, torch.zeros(2, 4))


def test_what_is_not_finite_is_neither_made_nor_saved():
    directions = some_directions()
    with pytest.raises(ValueError, match=r"layers \[2, 9, 10\] are not finite"):
        directions * math.inf


def test_states_that_are_not_finite_are_named_by_row_and_layer():
    states = torch.zeros(2, 3, 4)
    check_finite_states(states, (5, 6), "abc")
    states[1, 2, 0] = math.nan
    with pytest.raises(ValueError, match="row c: its hidden states in layer 6 are not finite"):
        check_finite_states(states, (5, 6), "abc")


def test_the_same_directions_are_the_same_bytes(tmp_path):
    files = {some_directions().save(tmp_path / str(run)).read_bytes() for run in range(12)}
    assert len(files) == 1
    names = list(json.loads(files.pop()[8:].partition(b"}}")[0] + b"}}")["__metadata__"])
    assert names == ["format", "rahf"]
