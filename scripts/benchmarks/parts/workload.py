"""What every variant of the benchmark is given: the same model, teachers, policy and rows of ids.

Lengths are drawn like UltraFeedback's. Its paper (arXiv 2310.01377, table 1) gives means of 185.1
tokens a prompt and 305.3 a response; the log-normal form and its widths are our assumption, with
the long tail that drops about a sixth of the prompts at 256 tokens. Ids are drawn uniformly:
what is measured does not depend on their meaning. Knows no variant and no clock.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rahf.recipe.layers import first_layer

PROMPT_MEAN, PROMPT_SIGMA = 185.1, 1.2
RESPONSE_MEAN, RESPONSE_SIGMA = 305.3, 0.7
MAX_PROMPT, MAX_TOTAL = 256, 768
INSTRUCTION = 17
"""Tokens that the package's own instructions add to a prompt (16 and 17 of SmolLM2's)."""

SPECIAL = 10
"""Ids below are left alone: control tokens in most vocabularies."""

PUBLISHED_DEPTH = 32
ALIGNED = {
    # Blocks of the 32 whose outputs are aligned, and the first response tokens that are.
    "dual": (range(9, 20, 2), 64),
    "scit": (range(9, 18, 2), 512),
}
REFERENCE = {"dual": "positive", "scit": "contrast"}
TEACHERS = {"dual": ("positive", "negative"), "scit": ("contrast",)}


@dataclass(frozen=True)
class Workload:
    """One method in its published settings on one model."""

    folder: Path  # of rows and adapters
    method: str
    model: str | None  # folder of a model, or
    shape: str | None  # a configuration whose weights are drawn
    dtype: str
    device: str
    pairs: int  # a step; both responses of each are aligned
    lengths: float = 1.0  # factor on all lengths
    alpha: float = 5.0
    learning_rate: float = 3e-4
    row_folder: str = "rows"
    first: float = 0.0  # first block with an adapter, as a fraction of the depth
    bits: int | None = None  # 4: of the weights of a model that is loaded as a recipe's

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Workload":
        return cls(**{**values, "folder": Path(values["folder"])})

    @property
    def reference(self) -> str:
        return REFERENCE[self.method]

    @property
    def max_response_tokens(self) -> int:
        return self.scaled(ALIGNED[self.method][1])

    @property
    def naive_width(self) -> int:
        """Return the number of tokens that the published scripts pad every row to."""
        return min(self.scaled(MAX_TOTAL), self.scaled(MAX_PROMPT) + self.max_response_tokens)

    def scaled(self, tokens: float) -> int:
        return math.ceil(tokens * self.lengths)

    def layers(self) -> tuple[int, ...]:
        """Return the published blocks at the same fraction of this model's depth."""
        depth = self.config().num_hidden_layers
        scaled = (block * depth // PUBLISHED_DEPTH for block in ALIGNED[self.method][0])
        return tuple(sorted(set(scaled)))

    def first_block(self) -> int:
        """Return the first block with an adapter."""
        depth = self.config().num_hidden_layers
        return first_layer(self.first, depth, self.layers())

    def lora(self) -> LoraConfig:
        """Return the published LoRA, on the blocks from the first."""
        blocks = range(self.first_block(), self.config().num_hidden_layers)
        return LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules=["q_proj", "v_proj"],
            layers_to_transform=list(blocks),
            task_type="CAUSAL_LM",
        )

    def config(self) -> Any:
        if self.shape is None:
            return AutoConfig.from_pretrained(self.model)
        settings = json.loads(Path(self.shape).read_text())
        return AutoConfig.for_model(settings.pop("model_type"), **settings)

    def load_model(self) -> PreTrainedModel:
        """Load the base on its device; drawn weights are the same in every process."""
        dtype = getattr(torch, self.dtype)
        if self.shape is None:
            return AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype).to(self.device)
        torch.manual_seed(0)
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(self.config(), dtype=dtype)

    def teacher(self, name: str) -> Path:
        return self.folder / name

    def teachers(self) -> dict[str, Path]:
        return {name: self.teacher(name) for name in TEACHERS[self.method]}

    def rows(self) -> Dataset:
        return Dataset.load_from_disk(str(self.folder / self.row_folder))


def prepare(workload: Workload, steps: int, seed: int = 0) -> None:
    """Write rows for `steps` steps and the teachers' adapters into the workload's folder."""
    rows = draw_rows(workload, steps, seed)
    Dataset.from_list(rows).save_to_disk(str(workload.folder / "rows"))
    for number, name in enumerate(TEACHERS[workload.method], start=1):
        write_adapter(workload, workload.teacher(name), seed=number)


def draw_rows(workload: Workload, steps: int, seed: int) -> list[dict[str, Any]]:
    """Return the pairs of `steps` steps, in their order."""
    generator = np.random.default_rng(seed)
    vocab = workload.config().vocab_size
    return [
        draw_pair(row, generator, vocab, workload.lengths) for row in range(steps * workload.pairs)
    ]


def draw_pair(
    row: int, generator: np.random.Generator, vocab: int, lengths: float = 1.0
) -> dict[str, Any]:
    """Return a pair whose ids are in the vocabulary and whose lengths keep the published limits."""

    def ids(length: int) -> list[int]:
        return generator.integers(SPECIAL, vocab, math.ceil(length * lengths)).tolist()

    prompt = ids(draw_length(generator, PROMPT_MEAN, PROMPT_SIGMA, MAX_PROMPT))
    # The instruction is as long at every factor.
    room = max(1, MAX_TOTAL - math.ceil((INSTRUCTION + len(prompt)) / lengths))
    chosen, rejected = (
        ids(min(room, draw_length(generator, RESPONSE_MEAN, RESPONSE_SIGMA))) for _ in range(2)
    )
    return {
        "row": row,
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        # The instructions themselves are the same tokens in every row.
        "positive_prompt_ids": [*range(SPECIAL, SPECIAL + INSTRUCTION), *prompt],
        "negative_prompt_ids": [*range(SPECIAL + 1, SPECIAL + 1 + INSTRUCTION), *prompt],
    }


def draw_length(
    generator: np.random.Generator, mean: float, sigma: float, limit: float = math.inf
) -> int:
    """Draw the number of tokens of one text, again while above `limit`, since such pairs are
    dropped.
    """
    while True:
        length = math.ceil(generator.lognormal(math.log(mean) - sigma**2 / 2, sigma))
        if length <= limit:
            return length


def write_adapter(workload: Workload, folder: Path, seed: int) -> None:
    """Write a LoRA of the published form with drawn weights, made without the base's own."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(workload.config())
        model = get_peft_model(base, workload.lora())
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.02
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    config.inference_mode, config.base_model_name_or_path = True, workload.model
    config.save_pretrained(folder)
    save_file(weights, folder / "adapter_model.safetensors")


def responses_of(pairs: list[Mapping[str, Any]], limit: int) -> list[tuple[Mapping, list[int]]]:
    """Return (pair, response ids) of both sides of each pair, cut to the aligned tokens."""
    return [(pair, pair[side][:limit]) for pair in pairs for side in ("chosen_ids", "rejected_ids")]


def response_tokens(workload: Workload, steps: int, warmup: int) -> dict[str, float]:
    """Return the response tokens in a timed step's loss: the aligned tokens, and all tokens, as
    DPO's.
    """
    first, last = warmup * workload.pairs, (warmup + steps) * workload.pairs
    pairs = list(workload.rows().select(range(first, last)))

    def mean(limit: int) -> float:
        return sum(len(ids) for _, ids in responses_of(pairs, limit)) / steps

    return {"aligned": mean(workload.max_response_tokens), "dpo": mean(MAX_TOTAL)}
