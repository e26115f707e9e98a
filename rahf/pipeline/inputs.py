"""What a recipe names, loaded: tokenizer, base, rows, teachers, directions, trainer arguments.

Knows recipes and loaders; trains nothing.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rahf.artifacts import expanded
from rahf.data.chat_format import with_chat_template
from rahf.data.pairs import without_held_out
from rahf.data.sources import (
    DataSource,
    hub_splits,
    load_mixture,
    load_pairs,
    local_path,
    local_splits,
)
from rahf.data.summary import DataReport
from rahf.data.tokenization import tokenize_texts
from rahf.models.adapters import base_model, load_tokenizer_of
from rahf.recipe.data_options import MOST_HELD_OUT
from rahf.recipe.direction_files import protected_folders
from rahf.recipe.held_out import DEFAULT_TEST_SPLIT, HELD_OUT, held_out_split
from rahf.recipe.layers import first_layer, resolve_layers
from rahf.recipe.recipe import Recipe
from rahf.trainer_config import RAHFConfig
from rahf.training.preparation import tokenized

QUIET_DEFAULTS = {
    "report_to": "none",
    "dataloader_pin_memory": torch.cuda.is_available(),
    # Every trained weight has a gradient in every step, so DDP need not search for unused ones.
    "ddp_find_unused_parameters": False,
}
"""Where transformers' own defaults would warn, or report to whatever tracker is installed."""


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer, with the recipe's chat template where it gives one."""
    model = recipe.model
    tokenizer = load_tokenizer_of(
        model.model_name_or_path,
        revision=model.model_revision,
        trust_remote_code=model.trust_remote_code,
    )
    return with_chat_template(tokenizer, recipe.data.chat_template)


def load_base(recipe: Recipe, name: str | Path | None = None) -> PreTrainedModel:
    """Return the base, or the model `name`, as the recipe sets it, on the device of this process.

    Raises:
        ValueError: 4 bits on a CPU.
    """
    model = recipe.model
    options: dict[str, Any] = {
        "dtype": model.dtype,
        "revision": model.model_revision,
        "trust_remote_code": model.trust_remote_code,
    }
    if model.attn_implementation:
        options["attn_implementation"] = model.attn_implementation
    if model.load_in_4bit and PartialState().device.type == "cpu":
        raise ValueError(
            "load_in_4bit: true needs an accelerator: on a CPU bitsandbytes multiplies with 4-bit "
            "weights by a kernel that has no gradient. Use load_in_8bit: true, or no quantisation."
        )
    if model.load_in_4bit or model.load_in_8bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=model.load_in_4bit,
            load_in_8bit=model.load_in_8bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        options["device_map"] = {"": PartialState().device}
    device = None if "device_map" in options else PartialState().device
    return base_model(str(name or model.model_name_or_path), options, device)


def lora_config(recipe: Recipe) -> LoraConfig:
    """Return the LoRA of teachers and policy.

    Raises:
        ValueError: it begins above the lowest target layer.
    """
    model = recipe.model
    return LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        use_rslora=model.use_rslora,
        use_dora=model.use_dora,
        target_modules=model.lora_target_modules,
        layers_to_transform=_adapted_layers(recipe),
        task_type="CAUSAL_LM",
    )


def _adapted_layers(recipe: Recipe) -> list[int] | None:
    """Return the blocks that may get an adapter; None: all."""
    model = recipe.model
    if model.lora_first_layer == 0:
        return None
    options = {"revision": model.model_revision, "trust_remote_code": model.trust_remote_code}
    config = AutoConfig.from_pretrained(model.model_name_or_path, **options)
    depth = config.get_text_config().num_hidden_layers
    targets = resolve_layers(recipe.method.target_layers, depth)
    return list(range(first_layer(model.lora_first_layer, depth, targets), depth))


def alignment_arguments(recipe: Recipe) -> RAHFConfig:
    """Return the recipe as the arguments of the trainer."""
    method = dataclasses.asdict(recipe.method)
    lengths = {
        "max_prompt_length": recipe.data.max_prompt_length,
        "max_length": recipe.data.max_length,
    }
    method["protect"] = [str(folder) for folder in protected_folders(recipe)]
    return RAHFConfig(**{**QUIET_DEFAULTS, **method, **lengths, **recipe.training})


def data_files(recipe: Recipe) -> list[Path]:
    """Return the local files and folders of the recipe's pairs, of all splits."""
    data, given = recipe.data, recipe.data.datasets
    sources = [DataSource(**part) for part in given or ()]
    if data.dataset_name is not None:
        sources.append(DataSource(data.dataset_name, data.dataset_config))
    wanted = {data.dataset_train_split, data.dataset_test_split, *(each.split for each in sources)}
    names, files = {name.partition("[")[0] for name in wanted if name}, []
    for source in sources:
        if expanded(source.path).exists() and (local := local_path(source)) is not None:
            splits = local_splits(local)
            files += [path for name in sorted(names & splits.keys()) for path in splits[name]]
    return files


def load_split(recipe: Recipe, split: str) -> Dataset:
    """Return the normalised pairs of one split, or of the recipe's mixture for the training split.

    HELD_OUT is the share of the training prompts that is held out; the training split lacks it.
    """
    data = recipe.data
    if known_held_out_split(recipe) == HELD_OUT and split in (data.dataset_train_split, HELD_OUT):
        pairs = _load_split(recipe, data.dataset_train_split)
        return without_held_out(pairs, data.test_share, MOST_HELD_OUT)[split == HELD_OUT]
    return _load_split(recipe, split)


def known_held_out_split(recipe: Recipe) -> str | None:
    """Return `held_out_split`, checked against the splits of data of the Hub."""
    data, split = recipe.data, held_out_split(recipe.data)
    if split != DEFAULT_TEST_SPLIT or expanded(data.dataset_name).exists():
        return split
    splits = hub_splits(data.dataset_name, data.dataset_config)
    if split in splits or len(splits) > 1:  # where it is not among several, loading reports it
        return split
    return HELD_OUT if data.test_share else None


def measured_split(recipe: Recipe) -> str | None:
    """Return the name of the held-out split for `load_split`; None where nothing is held out."""
    split = known_held_out_split(recipe)
    return None if split == HELD_OUT and not len(load_split(recipe, split)) else split


def _load_split(recipe: Recipe, split: str) -> Dataset:
    data = recipe.data
    if data.datasets is not None and split == data.dataset_train_split:
        sources = [DataSource(**{"split": split, **part}) for part in data.datasets]
        return load_mixture(sources, seed=recipe.training_value("seed"))
    return load_pairs(
        data.dataset_name, name=data.dataset_config, split=split, columns=data.columns
    )


def tokenized_split(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, split: str, *, instructed: bool = False
) -> tuple[Dataset, DataReport]:
    """Return the rows of one split; the first process makes them, the others read the cache.

    Args:
        instructed: whether rows hold the prompts under the instructions, whatever the method.
    """
    data = recipe.data
    with PartialState().main_process_first():
        return tokenized(
            load_split(recipe, split),
            tokenizer,
            recipe.method,
            max_prompt_length=data.max_prompt_length,
            max_length=data.max_length,
            instructed=instructed,
            chat_template=data.chat_template,
            num_proc=data.dataset_num_proc,
        )


def train_rows(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, step: int, **options: bool
) -> Dataset:
    """Return training rows of step 1 (teachers) or 2 (alignment): all of them, or a half each.

    `options`: of `tokenized_split`.
    """
    rows = tokenized_split(recipe, tokenizer, recipe.data.dataset_train_split, **options)[0]
    if not recipe.data.split_between_stages:
        return rows
    order = np.random.default_rng(recipe.training_value("seed")).permutation(len(rows))
    half = len(rows) // 2
    return rows.select(np.sort(order[:half] if step == 1 else order[half:]))


def test_rows(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, **options: bool
) -> Dataset | None:
    """Return held-out rows, or None where there are none; `options`: of `tokenized_split`."""
    split = measured_split(recipe)
    return tokenized_split(recipe, tokenizer, split, **options)[0] if split else None


def teachers_of(recipe: Recipe) -> dict[str, str | Path]:
    """Return the folder of each teacher that the method needs, given or trained in step 1."""
    return {
        name: getattr(recipe.teachers, name) or recipe.output_dir / "teachers" / name
        for name in recipe.method.facts.teachers
    }


def directions_of(recipe: Recipe) -> str | Path | None:
    """Return where the stored shift is: the given file, or the folder of the stage that fits it."""
    if "directions" in recipe.stages:
        return recipe.output_dir / "directions"
    return recipe.method.directions


def unrelated_texts(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the ids of the unrelated texts; empty where the recipe names no file of them."""
    options = recipe.evaluation
    if options.unrelated_text is None:
        return []
    return tokenize_texts(
        options.unrelated_text,
        tokenizer,
        rows=options.unrelated_rows,
        tokens=recipe.data.max_length,
    )
