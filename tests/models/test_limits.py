"""Ids and lengths that a model has no embedding for are refused before its first forward pass."""

import pytest
import torch
from model_families import family_model
from tiny_models import EOS, VOCABULARY, tiny_model, tiny_pairs
from tiny_runs import alignment_trainer

from rahf.models.limits import check_rows, learned_positions

COLUMNS = (
    *("prompt_ids", "chosen_ids", "rejected_ids"),
    *("positive_prompt_ids", "negative_prompt_ids"),
)


@pytest.mark.parametrize("token", [VOCABULARY, 10 * VOCABULARY])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_token_without_an_embedding_is_reported_with_its_row(column, token):
    pairs = tiny_pairs(3)
    check_rows(tiny_model(), pairs, EOS)
    pairs[1][column] = [token, *pairs[1][column]]
    message = rf"row 101: {column} has the token {token}.*embeds 40.*resize_token_embeddings"
    with pytest.raises(ValueError, match=message):
        check_rows(tiny_model(), pairs, EOS)


def test_a_padding_without_an_embedding_is_reported():
    with pytest.raises(ValueError, match=r"padding has the id 40.*embeds 40 tokens"):
        check_rows(tiny_model(), tiny_pairs(1), VOCABULARY)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neo", "biogpt", "gpt_bigcode"])
def test_the_longest_row_that_a_model_with_learned_positions_takes_is_what_is_checked(family):
    model = family_model(family)
    positions = learned_positions(model)
    model(input_ids=torch.full((1, positions), 5), use_cache=False)
    pairs = tiny_pairs(1)
    longest = max(len(pairs[0][side]) for side in ("chosen_ids", "rejected_ids"))
    for name in ("prompt_ids", "positive_prompt_ids", "negative_prompt_ids"):
        pairs[0][name] = [5] * (positions - longest)
    check_rows(model, pairs, EOS)
    pairs[0]["positive_prompt_ids"] += [5]
    with pytest.raises(ValueError, match=rf"row 100: .*{positions + 1} tokens.*max_length"):
        check_rows(model, pairs, EOS)


@pytest.mark.parametrize("family", ["llama", "bloom", "mamba", "gptj"])
def test_computed_positions_have_no_limit(family):
    assert learned_positions(family_model(family)) is None


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
ROPES = {
    "dynamic": ("llama", {"factor": 4.0}, {"max_position_embeddings": 16}),
    "longrope": ("llama", {**FACTORS, "factor": 4.0, "original_max_position_embeddings": 16}, {}),
    "phi3": ("phi3", FACTORS, {"original_max_position_embeddings": 16}),
    "yarn": ("llama", {"factor": 4.0, "original_max_position_embeddings": 16}, {}),
    "llama3": (
        "llama",
        {"factor": 4.0, "original_max_position_embeddings": 16}
        | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {},
    ),
    "default": ("llama", {}, {"max_position_embeddings": 16}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ROPES)
def test_rows_are_refused_from_the_length_that_changes_the_rope_of_their_neighbours(name):
    family, rope, changes = ROPES[name]
    kind = {"phi3": "longrope"}.get(name, name)
    rope = {"rope_type": kind, "rope_theta": 10000.0, **rope}
    model = family_model(family, rope_parameters=rope, **changes)
    short = torch.arange(8)
    alone = model(input_ids=short[None] + 2, position_ids=short[None], use_cache=False).logits[0]
    changed = {}
    for length in (16, 17):
        both = torch.stack(
            [torch.cat([short, torch.zeros(length - 8).long()]), *[torch.arange(length)]]
        )
        beside = model(input_ids=both + 2, position_ids=both, use_cache=False).logits[0, :8]
        changed[length] = bool((beside - alone).abs().max() > 1e-3)
    assert changed == {16: False, 17: kind in ("dynamic", "longrope")}

    pairs = tiny_pairs(2)
    longest = max(len(pairs[1][side]) for side in ("chosen_ids", "rejected_ids"))
    pairs[1]["positive_prompt_ids"] = [5] * (16 - longest)
    check_rows(model, pairs, EOS)
    pairs[1]["positive_prompt_ids"] += [5]
    if not changed[17]:
        check_rows(model, pairs, EOS)
        return
    message = rf"row 101: .*17 tokens.*{kind}.*16 original positions.*max_length: 16 or less"
    with pytest.raises(ValueError, match=message):
        check_rows(model, pairs, EOS)


def test_a_training_checks_its_rows_before_a_teacher_is_trained(family, tmp_path):
    base = family.load_base()
    base.resize_token_embeddings(30)
    with pytest.raises(ValueError, match=r"row \d+: .* embeds 30 tokens"):
        alignment_trainer(family, tmp_path, base=base, method="dual", teachers={})
    assert not [*tmp_path.rglob("*.safetensors")]


@pytest.mark.parametrize("packing", [True, False])
def test_router_logits_in_a_configuration_change_no_loss(family, tmp_path, packing):
    losses = []
    for wanted in (False, True):
        base = family_model("mixtral", output_router_logits=wanted)
        trainer = alignment_trainer(
            family,
            tmp_path / str(wanted),
            base=base,
            method="lorra",
            teachers={},
            target_layers=[0, 1],
            max_steps=1,
            packing=packing,
        )
        assert trainer.alignment.packed == packing
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[1]
