"""A model of transformers as a GGUF file in float32, for tests against llama.cpp, without a
vocabulary; and a control vector read back.

Names of tensors and keys are those of the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), as the package gguf lists them.
"""

from pathlib import Path

import gguf
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from rahf.directions.vectors import Directions
from rahf.export.gguf import LLAMA_CPP_NAMES


def write_model(model: PreTrainedModel, path: Path) -> None:
    config = model.config
    name = LLAMA_CPP_NAMES.get(config.model_type, config.model_type)
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, name)
    write_numbers(writer, config)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(key, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(stored, rearranged(key, tensor, config).float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_numbers(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(
        getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    )
    writer.add_head_count(heads)
    grouped = config.model_type not in ("gpt2", "gpt_neox")
    writer.add_head_count_kv(config.num_key_value_heads if grouped else heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if config.model_type == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    rope = config.rope_parameters
    theta = rope.get("full_attention", rope)["rope_theta"]
    writer.add_rope_freq_base(theta)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if config.model_type == "gpt_neox":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)
        return
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def rearranged(key: str, tensor: Tensor, config: PretrainedConfig) -> Tensor:
    """Return a parameter in the layout that llama.cpp's graph of the architecture reads."""
    kind, heads = config.model_type, config.num_attention_heads
    if kind in ("llama", "mistral") and ("q_proj" in key or "k_proj" in key):
        # transformers turns the halves of a head against each other, llama.cpp neighbours.
        rows = heads if "q_proj" in key else config.num_key_value_heads
        return tensor.unflatten(0, (rows, 2, -1)).transpose(1, 2).flatten(0, 2)
    if kind.startswith("gemma") and "norm" in key:
        return tensor + 1  # the layer multiplies by one plus its weight
    if kind == "gpt2" and tensor.ndim == 2 and ".h." in key:
        return tensor.T  # Conv1D keeps [inputs, outputs]
    if kind == "gpt_neox" and "query_key_value" in key:
        # One head's query, key and value after another's; wanted: all queries, keys, values.
        return tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return tensor


def shaken(model: PreTrainedModel, seed: int = 7) -> PreTrainedModel:
    """Return the model with norms and biases that are not 1 and 0, so that their places matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def read_control_vector(path: Path) -> Directions:
    """Read the vectors of a control vector as llama.cpp's loader does."""
    vectors = {
        int(tensor.name.removeprefix("direction.")): torch.tensor(tensor.data)
        for tensor in gguf.GGUFReader(path).tensors
    }
    layers = tuple(sorted(vectors))
    return Directions(layers, torch.stack([vectors[layer] for layer in layers]))
