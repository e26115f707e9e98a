"""Every decoder has a default LoRA, on the blocks that are trained and on no others."""

from dataclasses import replace

import pytest
import torch
from model_families import family_model
from peft import get_peft_model
from tiny_models import lora, randomize, tiny_model
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from rahf.models.adapters import attach_policy, find_blocks, put_adapter, trainable
from rahf.models.lora_targets import WITHOUT_LORA, on_all_blocks, oriented

FUSED_EXPERTS = {
    "mixtral",
    "qwen2_moe",
    "granitemoe",
    "gpt_oss",
    "qwen3_moe",
    "olmoe",
    "qwen3_next",
}
WITHOUT_PEFT_DEFAULT = {
    *("phi3", "olmo2", "olmo3", "granite", "granitemoe", "cohere", "cohere2", "starcoder2"),
    *("smollm3", "glm4", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"),
    *("qwen3_next", "mamba", "falcon_h1", "falcon", "nemotron_h"),
}


def with_adapter(block):
    return {
        name.partition(".lora_")[0]
        for name, parameter in block.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize("modules", [None, "all-linear"])
@pytest.mark.parametrize("family", sorted(WITHOUT_PEFT_DEFAULT))
def test_every_decoder_has_a_default_lora_on_its_trained_blocks(family, modules, caplog):
    policy = attach_policy(family_model(family), lora(target_modules=modules), range(2))
    blocks = find_blocks(policy).modules
    assert [bool(with_adapter(block)) for block in blocks] == [
        (family, modules) != ("nemotron_h", None),  # PEFT's default for it is attention
        *(True, False, False),
    ]
    assert sum(len(trainable(block)) for block in blocks) == len(trainable(policy))
    refused = WITHOUT_LORA.get(family, ())
    assert not [name for block in blocks for name in with_adapter(block) if name.endswith(refused)]
    policy.train()(input_ids=torch.tensor([[5, 6, 7]])).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in trainable(policy))
    assert ("get no adapter" in caplog.text) == (family in FUSED_EXPERTS)


def test_peft_keeps_its_own_default_where_it_has_one():
    policy = attach_policy(tiny_model(), lora(), range(3))
    assert policy.peft_config["default"].target_modules == {"q_proj", "v_proj"}
    assert policy.peft_config["default"].layers_pattern is None


LEFT_OUT = [(family, name) for family, names in WITHOUT_LORA.items() for name in names]


@pytest.mark.parametrize(("family", "name"), LEFT_OUT)
def test_what_is_left_out_is_what_peft_refuses_or_the_model_reads_past_its_adapter(family, name):
    model, ids = family_model(family), torch.tensor([[5, 6, 7]])
    if name == "out_proj":
        with pytest.raises(ValueError, match=r"out_proj.*incompatible"):
            get_peft_model(model, lora(target_modules=[name]))
        return
    before = model(input_ids=ids, use_cache=False).logits
    adapted = get_peft_model(model, lora(target_modules=[name]))
    randomize(adapted, "default", seed=0, scale=0.5)
    after = adapted.eval()(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5)  # rounding, as beside no LoRA


def test_experts_named_by_target_parameters_are_not_reported(caplog):
    fused = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    policy = attach_policy(family_model("mixtral"), lora(target_parameters=fused), range(2))
    assert "get no adapter" not in caplog.text
    assert any("experts" in name for name in with_adapter(find_blocks(policy).modules[0]))


@pytest.mark.parametrize(("family", "modules"), [("llama", {"q_proj", "v_proj"}), ("phi3", None)])
def test_a_lora_on_all_blocks_has_a_default_too(family, modules):
    model = get_peft_model(family_model(family), oriented(lora(), family_model(family)))
    found = {name.split(".")[-1] for name in model.peft_config["default"].target_modules}
    assert found == (modules or {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"})


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 1,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
WITH_TOWERS = {
    "gemma3": ("gemma3_text", "siglip_vision_model"),
    "llava": ("llama", "clip_vision_model"),
    "mistral3": ("mistral", "pixtral"),
}


def model_with_tower(family, auto=AutoModelForImageTextToText):
    text, tower = WITH_TOWERS[family]
    vision = {**TOWER, "model_type": tower} | ({"head_dim": 8} if tower == "pixtral" else {})
    config = CONFIG_MAPPING[family](
        text_config={**SIZES, "model_type": text}, vision_config=vision, image_token_index=39
    )
    return auto.from_config(config)


@pytest.mark.parametrize("modules", [None, "all-linear", ["q_proj"], ["q_proj", "fc1"], ".*q_proj"])
@pytest.mark.parametrize("family", sorted(WITH_TOWERS))
def test_a_lora_is_on_the_decoder_blocks_and_on_no_block_of_a_tower(family, modules, tmp_path):
    policy = attach_policy(model_with_tower(family), lora(target_modules=modules), range(2))
    blocks = find_blocks(policy).modules
    assert [bool(with_adapter(block)) for block in blocks] == [True, True, False, False]
    assert sum(len(trainable(block)) for block in blocks) == len(trainable(policy))
    assert not [key for key, _ in policy.named_parameters() if "vision" in key and "lora_" in key]
    randomize(policy, "default", seed=0)
    policy.save_pretrained(tmp_path)
    reloaded = put_adapter(model_with_tower(family), tmp_path)
    found, expected = reloaded.state_dict(), policy.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found if "lora_" in key)


@pytest.mark.parametrize("modules", [None, "all-linear", ["q_proj"]])
@pytest.mark.parametrize(
    ("family", "auto", "task"),
    [
        *((family, AutoModelForImageTextToText, "CAUSAL_LM") for family in sorted(WITH_TOWERS)),
        ("gemma3", AutoModelForSequenceClassification, "SEQ_CLS"),
    ],
)
def test_a_lora_of_dpo_or_of_a_reward_model_stays_in_the_decoder_too(family, auto, task, modules):
    base = model_with_tower(family, auto)
    config = on_all_blocks(replace(lora(target_modules=modules), task_type=task), base)
    assert config.task_type == task
    model = get_peft_model(base, config)
    reached = [key for key, _ in model.named_parameters() if "lora_" in key]
    assert reached
    assert not [key for key in reached if "vision" in key or "projector" in key]
