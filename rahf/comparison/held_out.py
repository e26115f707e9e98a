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
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rahf.artifacts import alone, identity_of, read_json, write_json, write_lines
from rahf.data.pairs import usable_pairs, whole_pair
from rahf.data.prompts import PromptForm, chat_prompt_form, read_chats
from rahf.data.sources import load_pairs
from rahf.data.tokenization import tokenize_pairs
from rahf.evaluation.measures import HeldOut
from rahf.pipeline.inputs import (
    data_files,
    known_held_out_split,
    load_split,
    measured_split,
    unrelated_texts,
)
from rahf.recipe.held_out import HELD_OUT
from rahf.recipe.recipe import Recipe

SPLIT_SEED = 0
"""Seed of the held-out training prompts: the same for every seed of a run."""

URIAL_AT_ONCE = 16
"""Prompts behind a long prefix, each with keys and values of its own."""


def with_validation(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe without the prompts on which trials are chosen, if there are trials, and
    without those that `test_share` holds out.

    The former are the split `validation` in `folder`.
    """
    shared = known_held_out_split(recipe) == HELD_OUT
    if not recipe.compare.trials and not shared:
        return recipe
    # Without trials nothing is taken out to choose on: another training split.
    folder = folder if recipe.compare.trials else folder.with_name("untried")
    with alone(folder):
        record = folder / "made_from.json"
        made_from = {"the pairs": identity_of(*data_files(recipe))}
        made_from |= {"test_share": recipe.data.test_share} if shared else {}
        if not (folder / "validation.jsonl").exists():
            _split(recipe, folder)
            write_json(record, made_from)
        elif record.exists() and read_json(record) != made_from:
            raise ValueError(
                f"{folder} holds a split of other pairs: the data, or what is held out, has "
                f"changed. Give another output_dir, or delete {recipe.output_dir / 'compare'}."
            )
    own = dataclasses.replace(
        recipe.data, dataset_name=str(folder), dataset_train_split="train", datasets=None,
        columns=None, dataset_config=None, dataset_test_split=None, test_share=0.0,
    )  # fmt: skip
    return dataclasses.replace(recipe, data=own)


def _split(recipe: Recipe, folder: Path) -> None:
    """Write the training pairs as `train.jsonl` and `validation.jsonl`, apart by their prompts."""
    pairs = usable_pairs(load_split(recipe, recipe.data.dataset_train_split))
    prompts = [json.dumps(prompt) for prompt in pairs["prompt"]]
    distinct = sorted(set(prompts))
    tried = bool(recipe.compare.trials)
    count = round(recipe.compare.validation_share * len(distinct)) if tried else 0
    if tried and not 0 < count < len(distinct):
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
    pairs = _test_pairs(recipe) if part == "test" else load_pairs(validation, split="validation")
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


def _test_pairs(recipe: Recipe) -> Dataset:
    split = measured_split(recipe)
    if split is None:
        raise ValueError(
            "compare: too few prompts to hold one out; raise test_share, or name a "
            "dataset_test_split"
        )
    return load_split(recipe, split)


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
