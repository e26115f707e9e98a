from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from tiny_models import EOS, tiny_dataset
from toy_influence import KINDS, PACKING, loop_gradients, objective_of, policy

from rahf.data.rows import LEAST_SHARED
from rahf.influence.curvature import fit_curvature
from rahf.influence.factors import pseudo_gradients
from rahf.influence.gradients import lora_parts
from rahf.influence.objectives import preference_objective
from rahf.influence.scores import pair_gradients


def together(objective, size):
    parts = lora_parts(objective.model)
    batches = objective.batches(size, whole=False)
    return torch.cat([pair_gradients(objective, parts, batch) for batch in batches])


def assert_near(found, expected, tolerance=1e-5):
    size = expected.abs().max()
    assert size > 1e-3
    assert (found - expected).abs().max() < tolerance * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 4, 6])
def test_gradients_of_pairs_are_those_of_a_loop_at_any_batch_size(family, tmp_path, kind, size):
    objective = objective_of(family, kind, tmp_path)
    expected = loop_gradients(objective)
    assert_near(together(objective, size), expected)


def long_prompts(count=6):
    """Pairs whose prompts are long enough to be shared, by all of them for the most part."""
    rows = tiny_dataset(count).to_list()
    for number, row in enumerate(rows):
        row["prompt_ids"] = [*range(3, 3 + LEAST_SHARED + 4), 5 + number, 7]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("kind", PACKING)
@pytest.mark.parametrize("size", [1, 4, 6])
def test_packed_gradients_are_those_of_a_padded_loop(family, tmp_path, kind, size):
    objective = objective_of(family, kind, tmp_path, long_prompts(), packed=True)
    parts = lora_parts(objective.model)
    losses, pseudo = loop_gradients(objective), loop_gradients(objective, pseudo=True)
    tokens = 0
    for places in objective.by_length(range(6), size):
        batch = objective.quick_batch(places, whole=False)
        assert batch.spans is not None
        tokens += batch.mask.numel()
        assert_near(pair_gradients(objective, parts, batch), losses[places])
        assert_near(pseudo_gradients(objective, parts, batch), pseudo[places])
    # The prompt is there once a pair, and its last token once a response.
    expected = 0
    for row in objective.rows:
        both = [len(row[f"{side}_ids"]) for side in objective.sides]
        expected += len(row["prompt_ids"]) + sum(both) + len(both) - 1
    assert tokens == expected


@pytest.mark.parametrize("kind", PACKING)
def test_curvature_of_packed_rows_is_that_of_padded_ones(family, tmp_path, kind):
    packed = objective_of(family, kind, tmp_path, long_prompts(), packed=True)
    padded = replace(packed, packs=False)
    parts = lora_parts(packed.model)
    vectors = torch.randn(2, parts[-1].stop, generator=torch.Generator().manual_seed(0))
    for name in ("ekfac", "kernel"):
        found, expected = (
            fit_curvature(name, each, parts, tmp_path / f"{name} {each.packs}", 4)
            for each in (packed, padded)
        )
        assert_near(found.solve(vectors), expected.solve(vectors), 1e-3)


@pytest.mark.parametrize("kind", ["dpo", "positive", "dual"])
def test_batches_by_length_hold_every_pair_once_and_like_lengths_together(family, tmp_path, kind):
    objective = objective_of(family, kind, tmp_path)
    batches = objective.by_length([5, 3, 1, 0], 3)
    order = [place for batch in batches for place in batch]
    assert [len(batch) for batch in batches] == [3, 1]
    assert sorted(order) == [0, 1, 3, 5]
    sizes = [
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in (objective.rows[place] for place in order)
    ]
    assert sizes == sorted(sizes)


def test_products_in_bfloat16_are_near_those_in_float32(family, tmp_path):
    objective = objective_of(family, "dpo", tmp_path, packed=True)
    coarse = replace(objective, bf16=True)
    parts = lora_parts(objective.model)
    batch = objective.quick_batch(range(6), whole=False)
    exact, found = (pair_gradients(each, parts, batch) for each in (objective, coarse))
    assert not torch.equal(exact, found)
    assert torch.cosine_similarity(found, exact).min() > 0.95


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
