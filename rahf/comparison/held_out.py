"""Data of a comparison: what rows are trained on, chosen on and measured on, kept apart.

Trials are chosen on prompts that are taken out of the training split, and on every second of the
unrelated texts; the test prompts and the other texts are read once, at the end.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rahf.artifacts import alone, identity_of, read_json, write_json, write_lines
from rahf.data.pairs import usable_pairs, whole_pair
from rahf.data.prompts import PromptForm, chat_prompt_form, read_chats
from rahf.data.sources import load_pairs
from rahf.data.tokenization import tokenize_pairs
from rahf.evaluation.measures import HeldOut
from rahf.pipeline.inputs import data_files, load_split, unrelated_texts
from rahf.recipe.recipe import Recipe

SPLIT_SEED = 0
"""Seed of the held-out training prompts: the same for every seed of a run."""

URIAL_AT_ONCE = 16
"""Prompts behind a long prefix, each with keys and values of its own."""


def with_validation(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe without the prompts on which trials are chosen, if there are trials.

    Those prompts are the split `validation` in `folder`.
    """
    if not recipe.compare.trials:
        return recipe
    with alone(folder):
        record = folder / "made_from.json"
        made_from = {"the pairs": identity_of(*data_files(recipe))}
        if not (folder / "validation.jsonl").exists():
            _split(recipe, folder)
            write_json(record, made_from)
        elif record.exists() and read_json(record) != made_from:
            raise ValueError(
                f"{folder} holds a split of other pairs: the data has changed. Give another "
                f"output_dir, or delete {folder.parent}."
            )
    own = dataclasses.replace(
        recipe.data, dataset_name=str(folder), dataset_train_split="train", datasets=None,
        columns=None, dataset_config=None,
    )  # fmt: skip
    return dataclasses.replace(recipe, data=own)


def _split(recipe: Recipe, folder: Path) -> None:
    """Write the training pairs as `train.jsonl` and `validation.jsonl`, apart by their prompts."""
    pairs = usable_pairs(load_split(recipe, recipe.data.dataset_train_split))
    prompts = [json.dumps(prompt) for prompt in pairs["prompt"]]
    distinct = sorted(set(prompts))
    count = round(recipe.compare.validation_share * len(distinct))
    if not 0 < count < len(distinct):
        raise ValueError(
            f"compare.validation_share: {recipe.compare.validation_share} of "
            f"{len(distinct)} training prompts is {count}: give a share that leaves some on "
            "both sides"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(distinct))
    held = {distinct[index] for index in order[:count]}
    for name, wanted in (("train", False), ("validation", True)):
        rows = (pair for pair, key in zip(pairs, prompts, strict=True) if wanted == (key in held))
        write_lines(folder / f"{name}.jsonl", map(_record, rows))


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt, chosen, rejected = whole_pair(row)
    return {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}


def held_out_part(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    part: str,
    validation: Path | None = None,
) -> HeldOut:
    """Return what is measured on.

    Args:
        part: `test`, or `validation`, whose pairs are in the folder `validation`.
    """
    data, options = recipe.data, recipe.evaluation
    if part == "test":
        pairs = load_split(recipe, data.dataset_test_split)
    else:
        pairs = load_pairs(validation, split="validation")
    pairs = usable_pairs(pairs)
    if part == "test" and options.prompts:
        chats = read_chats(options.prompts, tokenizer, data.chat_template)
    else:
        chats = list(_distinct(whole_pair(pair).prompt for pair in pairs))
    rows = ()  # preferences decide nothing: they are measured once, on the test pairs
    if part == "test":
        rows = tokenize_pairs(
            pairs,
            tokenizer,
            max_prompt_length=data.max_prompt_length,
            max_length=data.max_length,
            chat_template=data.chat_template,
        )[0]
    texts = unrelated_texts(recipe, tokenizer)
    if validation is not None:
        texts = texts[0::2] if part == "validation" else texts[1::2]
    form = chat_prompt_form(tokenizer, data.chat_template)
    return HeldOut(rows, chats, form, texts, options.max_new_tokens)


def under_urial(held_out: HeldOut, form: PromptForm) -> HeldOut:
    """Return the same prompts in URIAL's form, without pairs, which use the chat template."""
    return dataclasses.replace(held_out, form=form, pairs=(), answers_at_once=URIAL_AT_ONCE)


def _distinct(prompts: Iterable[Any]) -> Iterator[Any]:
    seen = set()
    for prompt in prompts:
        key = json.dumps(prompt)
        if key not in seen:
            seen.add(key)
            yield prompt
