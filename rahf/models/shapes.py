"""Sizes of a decoder, read from its config.json: what it multiplies, normalises and stores.

Knows the families that the library is tested with and their published defaults. Knows no recipe,
no dtype and no weights; needs no torch.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Linear(NamedTuple):
    """A matrix of every decoder block: `outputs x inputs` weights, and a bias where it has one."""

    name: str  # path inside the block, "self_attn.q_proj"
    inputs: int
    outputs: int
    bias: bool
    feeds: str  # what its output becomes: q, k, v, qkv (fused), attention, up or down

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


class Decoder(NamedTuple):
    """One decoder: `layers` equal blocks between an embedding and a language-model head."""

    family: str
    prefix: str  # path of the blocks in the model, "model.layers"
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int  # width inside of the MLP
    vocab: int
    positions: int  # learned position embeddings; 0: rotary
    tied: bool  # the head is the embedding, transposed
    linears: tuple[Linear, ...]  # of one block, in the order in which they are run
    norms: int  # of width d_model in one block
    head_norms: int  # 1: queries and keys are normalised a head each
    rms: bool  # RMS norms (a weight) or layer norms (a weight and a bias)
    activation: str
    softcap: bool = False  # attention's scores pass through a tanh
    parallel: bool = False  # the MLP reads what attention reads, not what attention adds to

    @property
    def gated(self) -> bool:
        """Return whether the MLP multiplies two projections."""
        return sum(linear.feeds == "up" for linear in self.linears) == 2

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Return the parameters of the matrices of one block."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def block_parameters(self) -> int:
        per_norm = 1 if self.rms else 2
        norms = per_norm * (self.norms * self.d_model + 2 * self.head_norms * self.head_dim)
        return self.linear_parameters + norms

    @property
    def embedding_parameters(self) -> int:
        """Return the parameters of token and position embeddings, and of an untied head."""
        tables = 1 if self.tied else 2
        return (tables * self.vocab + self.positions) * self.d_model

    @property
    def parameters(self) -> int:
        final_norm = (1 if self.rms else 2) * self.d_model
        return self.layers * self.block_parameters + self.embedding_parameters + final_norm


class _Family(NamedTuple):
    """What config.json may omit, by the defaults of the architecture."""

    norms: int = 2
    head_norms: int = 0
    qkv_bias: bool = False
    tied: bool = False
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: hidden_size / heads


_LLAMA_LIKE = {
    "llama": _Family(),
    "mistral": _Family(kv_heads=8),
    "qwen2": _Family(qkv_bias=True, kv_heads=32),
    "qwen3": _Family(head_norms=1, kv_heads=32, head_dim=128),
    "gemma": _Family(tied=True, kv_heads=16, head_dim=256),
    "gemma2": _Family(norms=4, tied=True, kv_heads=4, head_dim=256),
    "gemma3_text": _Family(norms=4, head_norms=1, tied=True, kv_heads=4, head_dim=256),
}

KNOWN = (*_LLAMA_LIKE, "gpt2", "gpt_neox")


_MOST_LAYERS, _LARGEST = 10_000, 2**28
_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), _MOST_LAYERS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "n_embd", "n_inner"), _LARGEST),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), _LARGEST),
    **dict.fromkeys(("head_dim", "vocab_size", "n_positions"), _LARGEST),
    "max_position_embeddings": _LARGEST,
}
"""Sizes in a config.json, with a bound that no model comes near."""


def size_problems(config: Mapping[str, Any]) -> list[str]:
    """Return a problem for each size that is not a valid whole number; null is omitted.

    A list has a size for each block.
    """
    return [
        f"{key}: {value!r:.60} is not a whole number from 1 to {_SIZES[key]:,}"
        for key, value in config.items()
        if key in _SIZES
        and value is not None
        and not all(
            type(size) is int and 1 <= size <= _SIZES[key]
            for size in (value if isinstance(value, list) else [value])
        )
    ]


def refuse_sizes(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a config.json with sizes that no model has.

    Raises:
        ValueError: `size_problems` finds some.
    """
    text = config.get("text_config")
    wrong = size_problems(text if isinstance(text, Mapping) else config)
    if wrong:
        raise ValueError(f"{name}/config.json: {'; '.join(wrong)}: correct the value.")


def read_decoder(config: Mapping[str, Any], source: str) -> Decoder:
    """Return the decoder that a config.json describes.

    Raises:
        ValueError: an architecture whose blocks are not known; a size is missing or out of range.
    """
    config = config.get("text_config") or config
    wrong = size_problems(config)
    if wrong:
        raise ValueError(f"{source}: {'; '.join(wrong)}")
    family = config.get("model_type")
    build = {"gpt2": _gpt2, "gpt_neox": _gpt_neox}.get(family)
    if build is None and family in _LLAMA_LIKE:
        build = _llama_like
    if build is None:
        raise ValueError(
            f"{source}: the blocks of model_type {family!r} are not known to the plan. Known are "
            f"{', '.join(KNOWN)}: describe the model as the nearest of them with "
            "--model_config FILE."
        )
    try:
        decoder = build(config)
    except KeyError as error:
        raise ValueError(f"{source}: {error.args[0]} is missing") from None
    if decoder.head_dim < 1:
        raise ValueError(
            f"{source}: {decoder.heads} attention heads do not fit into a width of "
            f"{decoder.d_model}"
        )
    return decoder


def _llama_like(config: Mapping[str, Any]) -> Decoder:
    family = _LLAMA_LIKE[config["model_type"]]
    width, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or family.kv_heads or heads
    head_dim = config.get("head_dim") or family.head_dim or width // heads
    mlp = config["intermediate_size"]
    on_output = bool(config.get("attention_bias", False))
    on_input = on_output or family.qkv_bias
    on_mlp = bool(config.get("mlp_bias", False))
    return Decoder(
        family=config["model_type"],
        prefix="model.layers",
        layers=config["num_hidden_layers"],
        d_model=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=mlp,
        vocab=config["vocab_size"],
        positions=0,
        tied=config.get("tie_word_embeddings", family.tied),
        linears=(
            Linear("self_attn.q_proj", width, heads * head_dim, on_input, "q"),
            Linear("self_attn.k_proj", width, kv_heads * head_dim, on_input, "k"),
            Linear("self_attn.v_proj", width, kv_heads * head_dim, on_input, "v"),
            Linear("self_attn.o_proj", heads * head_dim, width, on_output, "attention"),
            Linear("mlp.gate_proj", width, mlp, on_mlp, "up"),
            Linear("mlp.up_proj", width, mlp, on_mlp, "up"),
            Linear("mlp.down_proj", mlp, width, on_mlp, "down"),
        ),
        norms=family.norms,
        head_norms=family.head_norms,
        rms=True,
        activation="silu",
        softcap=config["model_type"] == "gemma2",
    )


def _gpt2(config: Mapping[str, Any]) -> Decoder:
    width, heads = config["n_embd"], config["n_head"]
    mlp = config.get("n_inner") or 4 * width
    return Decoder(
        family="gpt2",
        prefix="transformer.h",
        layers=config["n_layer"],
        d_model=width,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        mlp=mlp,
        vocab=config["vocab_size"],
        positions=config.get("n_positions", 1024),
        tied=config.get("tie_word_embeddings", True),
        linears=(
            Linear("attn.c_attn", width, 3 * width, True, "qkv"),
            Linear("attn.c_proj", width, width, True, "attention"),
            Linear("mlp.c_fc", width, mlp, True, "up"),
            Linear("mlp.c_proj", mlp, width, True, "down"),
        ),
        norms=2,
        head_norms=0,
        rms=False,
        activation=config.get("activation_function", "gelu_new"),
    )


def _gpt_neox(config: Mapping[str, Any]) -> Decoder:
    width, heads, mlp = (
        config[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")
    )
    bias = config.get("attention_bias", True)
    return Decoder(
        family="gpt_neox",
        prefix="gpt_neox.layers",
        layers=config["num_hidden_layers"],
        d_model=width,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        mlp=mlp,
        vocab=config["vocab_size"],
        positions=0,
        tied=config.get("tie_word_embeddings", False),
        linears=(
            Linear("attention.query_key_value", width, 3 * width, bias, "qkv"),
            Linear("attention.dense", width, width, bias, "attention"),
            Linear("mlp.dense_h_to_4h", width, mlp, True, "up"),
            Linear("mlp.dense_4h_to_h", mlp, width, True, "down"),
        ),
        norms=2,
        head_norms=0,
        rms=False,
        activation=config.get("hidden_act", "gelu"),
        parallel=config.get("use_parallel_residual", True),
    )


class Lora(NamedTuple):
    """Low-rank matrices A (rank x inputs) and B (outputs x rank) on some matrices of each block."""

    rank: int
    dropout: float
    targets: tuple[Linear, ...]
    dora: bool = False  # with a trained norm for each output

    @property
    def block_parameters(self) -> int:
        return sum(
            self.rank * (linear.inputs + linear.outputs) + self.dora * linear.outputs
            for linear in self.targets
        )


# PEFT's own choice where a recipe names no modules.
DEFAULT_TARGETS = {
    "gpt2": ("c_attn",),
    "gpt_neox": ("query_key_value",),
    **dict.fromkeys(_LLAMA_LIKE, ("q_proj", "v_proj")),
}


def read_lora(
    decoder: Decoder,
    rank: int,
    dropout: float,
    modules: list[str] | str | None,
    *,
    dora: bool = False,
) -> Lora:
    """Return the LoRA of a recipe on a decoder; names match as in PEFT, a text is a pattern.

    Blocks are equal here: a pattern that names a matrix in some of them counts as in all.

    Raises:
        ValueError: no matrix of a block has such a name.
    """
    given = DEFAULT_TARGETS[decoder.family] if modules is None else modules
    if given == "all-linear":
        chosen = decoder.linears
    elif isinstance(given, str):
        blocks = [f"{decoder.prefix}.{layer}." for layer in range(decoder.layers)]
        chosen = [
            linear
            for linear in decoder.linears
            if any(re.fullmatch(given, block + linear.name) for block in blocks)
        ]
    else:
        ends = tuple(f".{name}" for name in given)
        chosen = [linear for linear in decoder.linears if f".{linear.name}".endswith(ends)]
    if not chosen:
        raise ValueError(
            f"lora_target_modules: {given!r} names no matrix of a {decoder.family} block; they "
            f"are {', '.join(linear.name for linear in decoder.linears)}; a text is a pattern of "
            f"full names, such as {decoder.prefix}.0.{decoder.linears[0].name}"
        )
    return Lora(rank, dropout, tuple(chosen), dora)
