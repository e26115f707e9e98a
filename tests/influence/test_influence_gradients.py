import pytest
import torch
from tiny_models import EOS, tiny_dataset
from toy_influence import KINDS, loop_gradients, objective_of, policy

from rahf.influence.factors import pseudo_gradients
from rahf.influence.gradients import lora_parts
from rahf.influence.objectives import preference_objective
from rahf.influence.scores import pair_gradients


def together(objective, size):
    parts = lora_parts(objective.model)
    batches = objective.batches(size, whole=False)
    return torch.cat([pair_gradients(objective, parts, batch) for batch in batches])


def assert_near(found, expected):
    size = expected.abs().max()
    assert size > 1e-3
    assert (found - expected).abs().max() < 1e-5 * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 4, 6])
def test_gradients_of_pairs_are_those_of_a_loop_at_any_batch_size(family, tmp_path, kind, size):
    objective = objective_of(family, kind, tmp_path)
    expected = loop_gradients(objective)
    assert_near(together(objective, size), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_pseudo_gradients_depend_on_the_pair_only(family, tmp_path, kind):
    objective = objective_of(family, kind, tmp_path)
    parts, expected = lora_parts(objective.model), loop_gradients(objective, pseudo=True)
    found = pseudo_gradients(objective, parts, objective.batch(range(6), whole=False))
    assert_near(found, expected)


def test_retained_texts_belong_to_no_pair(family, tmp_path):
    objective = objective_of(family, "rmu", tmp_path)
    parts = lora_parts(objective.model)
    alone = pseudo_gradients(objective, parts, objective.batch([0, 1], whole=False))
    found = pseudo_gradients(objective, parts, objective.batch([0, 1], whole=True))
    assert len(alone) == 2
    assert len(found) == 4
    assert torch.allclose(found[:2], alone, atol=1e-5)
    assert found[2:].abs().sum(1).min() > 0


def test_an_adapter_that_trains_more_than_lora_matrices_is_refused(family):
    with pytest.raises(ValueError, match="influence is computed for LoRA matrices"):
        lora_parts(policy(family, use_dora=True))


def test_a_gradient_that_is_not_finite_is_named(family):
    objective = preference_objective(policy(family), tiny_dataset(4), EOS, 0.5)
    lora_parts(objective.model)[-1].module.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="the gradient of pair 100 is not finite"):
        together(objective, 2)
