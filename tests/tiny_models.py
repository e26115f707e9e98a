"""Tiny random models of every supported architecture, their adapters, a tokenizer and rows of ids.

pad = eos = id 1, so that padding can be known by its mask only.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 40
EOS = 1
DEPTH = 4
D_MODEL = 16
UPPER = (2, 3)
"""Blocks that have adapters where those below are a trunk that all views share."""

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "intermediate_size": 24,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    # Large enough for differences to be far above rounding.
    "initializer_range": 0.3,
}

_CONFIGS = {
    "llama": lambda: LlamaConfig(**_COMMON),
    "mistral": lambda: MistralConfig(**_COMMON, sliding_window=6),
    "qwen2": lambda: Qwen2Config(**_COMMON),
    "qwen3": lambda: Qwen3Config(**_COMMON),
    "gemma2": lambda: Gemma2Config(**_COMMON, query_pre_attn_scalar=8, sliding_window=6),
    "gemma3": lambda: Gemma3TextConfig(**_COMMON, query_pre_attn_scalar=8, sliding_window=6),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=D_MODEL,
        n_layer=DEPTH,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        **{name: value for name, value in _COMMON.items() if name not in ("head_dim",)}
    ),
}

ARCHITECTURES = tuple(_CONFIGS)


def tiny_model(architecture: str = "llama", seed: int = 0) -> PreTrainedModel:
    """Return a random model in float32, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(_CONFIGS[architecture]()).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer: words `w2`, `w3`, ... are ids 2, 3, ...; `[EOS]` is id 1, the end and the
    padding.
    """
    words = {"[UNK]": 0, "[EOS]": EOS, **{f"w{index}": index for index in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="[EOS]", pad_token="[EOS]", unk_token="[UNK]"
    )


def randomize(model: PeftModel, adapter: str, seed: int, scale: float = 0.2) -> None:
    """Give an adapter weights, so that it says something else than the base."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if f".{adapter}." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale


def lora(rank: int = 2, **options) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM", **options)


@dataclass(frozen=True)
class Family:
    """A base on disk and adapters of it, by teacher name."""

    base: Path
    adapters: dict[str, Path]

    def load_base(self, **options) -> PreTrainedModel:
        options = {"dtype": torch.float32, **options}
        return AutoModelForCausalLM.from_pretrained(self.base, **options).eval()

    def load(self, teacher: str | None) -> torch.nn.Module:
        """Load the base, or the base with a teacher's adapter, as a model of its own."""
        base = self.load_base()
        return base if teacher is None else PeftModel.from_pretrained(base, self.adapters[teacher])


def make_family(folder: Path, architecture: str, layers: list[int] | None = None) -> Family:
    base = folder / "base"
    tiny_model(architecture).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    adapters = {}
    for seed, name in enumerate(("positive", "negative", "contrast", "preferred"), start=1):
        model = AutoModelForCausalLM.from_pretrained(base)
        config = lora(fan_in_fan_out=architecture == "gpt2", layers_to_transform=layers)
        model = get_peft_model(model, config)
        randomize(model, "default", seed)
        adapters[name] = folder / name
        model.save_pretrained(adapters[name])
    return Family(base, adapters)


def tiny_pairs(
    count: int, seed: int = 0, instructions: bool = True, first_row: int = 100
) -> list[dict]:
    """Return tokenised pairs of different lengths; `row` starts far from 0, so that it is no
    position.
    """
    generator = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [generator.randrange(2, VOCABULARY) for _ in range(generator.randint(low, high))]

    pairs = []
    for row in range(first_row, first_row + count):
        prompt = ids(3, 6)
        pair = {"row": row, "prompt_ids": prompt}
        pair |= {"chosen_ids": [*ids(1, 6), EOS], "rejected_ids": [*ids(1, 6), EOS]}
        if instructions:
            pair["positive_prompt_ids"] = [5, 6, 7, *prompt]
            pair["negative_prompt_ids"] = [8, 9, *prompt]
        pairs.append(pair)
    return pairs


def tiny_dataset(count: int, **options) -> datasets.Dataset:
    return datasets.Dataset.from_list(tiny_pairs(count, **options))


def classifier(labels=1, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        num_labels=labels,
        pad_token_id=None,
    )
    return AutoModelForSequenceClassification.from_config(config).eval()


def tiny_model_of_bytes():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    return AutoModelForCausalLM.from_config(config).eval()
