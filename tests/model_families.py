"""A tiny random model of every causal language model family that transformers builds at toy size.

One table of sizes serves all: a configuration takes those whose names it has.
"""

import inspect
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "n_embd": 16,
    "d_model": 16,
    "dim": 16,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_layers": 4,
    "num_attention_heads": 2,
    "n_head": 2,
    "n_heads": 2,
    "num_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "n_inner": 24,
    "ffn_dim": 24,
    "word_embed_proj_dim": 16,
    "n_positions": 96,
    "n_ctx": 96,
    "max_seq_len": 96,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.3,
    "init_std": 0.3,
    "sliding_window": 6,
    "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": 40,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 12,
    "shared_intermediate_size": 12,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    # recurrence and convolution
    "state_size": 4,
    "mamba_d_state": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "mamba_d_ssm": 32,
    "ssm_state_size": 4,
    "n_groups": 1,
    "time_step_rank": 2,
    "mamba_dt_rank": 2,
    "lru_width": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # latent attention
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "qk_head_dim": 8,
    "v_head_dim": 8,
}

OWN: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 4, "n_head": 4, "num_attention_heads": 4},  # four partitions
    "dots1": {"n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 6},
    "gptj": {"rotary_dim": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 1},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "mamba", "mlp"]},
}


def family_config(family: str, **changes: Any):
    """Return the configuration of a tiny model of `family` (a model_type)."""
    kind = CONFIG_MAPPING[family]
    names = set(kind.attribute_map) | set(inspect.signature(kind.__init__).parameters)
    sizes = {name: size for name, size in SIZES.items() if name in names}
    return kind(**{**sizes, **OWN.get(family, {}), **changes})


def family_model(family: str, **changes: Any) -> PreTrainedModel:
    """Return a random model of `family` in float32, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(family_config(family, **changes)).eval()
