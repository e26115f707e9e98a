"""Which keys a recipe may have, what type each has, and what to say about any other key.

Three families: options at the top level, options of the sections `teachers`, `evaluation` and
`compare`, and the fields of TrainingArguments at the top level and under `teachers`.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from rahf.recipe.comparison_options import CompareOptions
from rahf.recipe.data_options import DataOptions
from rahf.recipe.evaluation_options import EvaluationOptions
from rahf.recipe.fields import annotations
from rahf.recipe.method_options import MethodOptions
from rahf.recipe.model_options import ModelOptions
from rahf.recipe.shift_options import TeacherOptions
from rahf.recipe.training_arguments import REPLACED, training_annotations

FLAT = (ModelOptions, DataOptions, MethodOptions)
SECTIONS = {
    "teachers": TeacherOptions,
    "evaluation": EvaluationOptions,
    "compare": CompareOptions,
}

# Fields of TrainingArguments that a recipe must not set.
REFUSED = {
    "hub_token": "remove it, a recipe is saved and shared: set the environment variable HF_TOKEN",
    "teachers.output_dir": "remove it: teachers are kept inside output_dir",
}


class Removed(NamedTuple):
    """A key that recipes once had."""

    advice: str  # what to do instead
    inert: Any = None  # value at which it changed nothing, so that old results stay as they are


REMOVED = {
    "kl_temperature": Removed(
        "remove it: it is 2 for repbend, as published, and 1 for every other method", 1.0
    ),
    "prediction_alpha": Removed(
        "remove it; prediction_weight, beside which it was read, is gone too", 1.0
    ),
    "prediction_weight": Removed(
        "remove it, and set dpo_weight: 1 with pairs_together: true instead", 0.0
    ),
    "target_cache_gib": Removed(
        "remove it; a training that needs more than the disk has free is refused"
    ),
}

# Choices that options once had, with what to do instead.
REMOVED_CHOICES = {
    "positions: predicting": "set response_and_tail, which aligns the end of the prompt as well",
}

# Names from other projects' recipes, with what to write here.
OTHER_NAMES = {
    "accelerate_config": "remove it; it is an option of rahf align and rahf plan, and no key",
    "activation_checkpoint": "use activation_checkpointing",
    "adapter_name_or_path": "use model_name_or_path for the base; adapters are given as teachers",
    "attn": "use attn_implementation",
    "base_model": "use model_name_or_path",
    "batch_size": "use per_device_train_batch_size",
    "beta": "use dpo_beta for the DPO term, or alpha for the strength of the shift; the beta of a "
    "preferred teacher is teachers.beta",
    "checkpoint": "use resume_from_checkpoint",
    "config": "remove it; the recipe is the first argument, as in rahf validate RECIPE.yaml",
    "cutoff_len": "use max_length",
    "data": "use dataset_name, or datasets for a mixture",
    "data_path": "use dataset_name",
    "dataset": "use dataset_name",
    "dataset_path": "use dataset_name",
    "epochs": "use num_train_epochs",
    "eval_batch_size": "use per_device_eval_batch_size",
    "eval_dataset": "use dataset_test_split",
    "flash_attention": "use attn_implementation: flash_attention_2",
    "grad_accum": "use gradient_accumulation_steps",
    "grad_accumulation_steps": "use gradient_accumulation_steps",
    "gradient_accumulation": "use gradient_accumulation_steps",
    "gradient_checkpointing": "use activation_checkpointing",
    "layers": "use target_layers",
    "learning_rate_scheduler": "use lr_scheduler_type",
    "load_in_16bit": "use dtype: bfloat16",
    "lora_modules": "use lora_target_modules",
    "lora_modules_to_save": "remove it; only adapters are trained",
    "lora_rank": "use lora_r",
    "lr": "use learning_rate",
    "lr_scheduler": "use lr_scheduler_type",
    "max_completion_length": "use max_length, of prompt and response together",
    "max_grad": "use max_grad_norm",
    "max_new_tokens": "use evaluation.max_new_tokens",
    "max_seq_len": "use max_length",
    "max_seq_length": "use max_length",
    "max_tokens": "use max_length",
    "micro_batch_size": "use per_device_train_batch_size",
    "model": "use model_name_or_path",
    "model_id": "use model_name_or_path",
    "model_name": "use model_name_or_path",
    "num_epochs": "use num_train_epochs",
    "num_proc": "use dataset_num_proc",
    "num_processes": "remove it; it is an option of rahf align and rahf plan, and no key",
    "optimizer": "use optim",
    "output": "use output_dir",
    "output_path": "use output_dir",
    "precision": "use bf16: true or fp16: true for training, dtype for the weights",
    "r": "use lora_r",
    "ref_model": "remove it; the reference is the base, or the key reference names a teacher",
    "scheduler": "use lr_scheduler_type",
    "seq_length": "use max_length",
    "sequence_len": "use max_length",
    "steps": "use max_steps",
    "target_modules": "use lora_target_modules",
    "test_split": "use dataset_test_split",
    "tokenizer": "remove it; the tokenizer is that of model_name_or_path",
    "tokenizer_name": "remove it; the tokenizer is that of model_name_or_path",
    "torch_dtype": "use dtype",
    "train_batch_size": "use per_device_train_batch_size",
    "train_dataset": "use dataset_name",
    "train_file": "use dataset_name",
    "train_split": "use dataset_train_split",
    "truncation_mode": "remove it; a longer response loses its end",
    "use_flash_attention_2": "use attn_implementation: flash_attention_2",
    "use_lora": "remove it; an adapter is always what is trained",
    "use_peft": "remove it; an adapter is always what is trained",
    "val_size": "use test_share",
    "wandb_project": "set the environment variable WANDB_PROJECT",
    "warmup": "use warmup_steps: a number below 1 is the share of all steps",
}


def groups() -> Iterator[tuple[str, str, type]]:
    """Yield (title, section, options) of each group of keys; the top level is the section ""."""
    of_method = reversed(MethodOptions.__bases__)  # shift, target, terms
    for options in (ModelOptions, DataOptions, *of_method):
        yield options.__name__.removesuffix("Options"), "", options
    for section, options in SECTIONS.items():
        yield f"{section}:", section, options


def full_name(section: str, name: str) -> str:
    """Return the dotted name of a key of a section, "" being the top level."""
    return f"{section}.{name}" if section else name


def default_of(spec: dataclasses.Field) -> Any:
    """Return the default of an option; dataclasses.MISSING where it is required."""
    factory = spec.default_factory
    return spec.default if factory is dataclasses.MISSING else factory()


def names(*classes: type) -> set[str]:
    return {spec.name for cls in classes for spec in dataclasses.fields(cls)}


def key_annotation(key: str) -> Any:
    """Return the type of the recipe key with this dotted name; Any for an unknown one."""
    section, _, name = key.rpartition(".")
    if section == "instructions":
        return str
    classes = {"": FLAT} | {section: (cls,) for section, cls in SECTIONS.items()}
    for cls in classes.get(section, ()):
        if name in names(cls):
            return annotations(cls)[name]
    return training_annotations().get(name, Any) if section in ("", "teachers") else Any


def unknown_keys(section: str, given: Iterable[Any]) -> list[str]:
    """Return a problem for each key that the section ("" for the top level) does not have."""
    known = names(SECTIONS[section]) if section else names(*FLAT) | SECTIONS.keys()
    if section in ("", "teachers"):
        known = known | training_annotations().keys()
    return [_unknown_key(section, key, known) for key in given if key not in known]


def _unknown_key(section: str, key: Any, known: set[str]) -> str:
    full = full_name(section, f"{key}")
    if not isinstance(key, str):
        return f"{full}: a key must be text, not {key!r}"
    if not section and key in OTHER_NAMES:
        return f"{full}: is not a key of a recipe: {OTHER_NAMES[key]}"
    for home, cls in SECTIONS.items():
        if not section and key in names(cls):
            return f"{full}: belongs under {home}: write {home}: {{{key}: ...}}"
    if section and key in names(*FLAT):
        return f"{full}: belongs to the top level of the recipe"
    if full in REMOVED:
        return f"{full}: is no longer a key of a recipe: {REMOVED[full].advice}"
    cure = REPLACED.get(key) or OTHER_NAMES.get(key)
    if cure:
        verb, _, named = cure.partition(" ")
        if section and verb == "use" and named.partition(" ")[0].rstrip(",:") in known:
            cure = f"use {full_name(section, named)}"
        return f"{full}: is not a key of a recipe: {cure}"
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    return f"{full}: unknown key" + (f", did you mean {near[0]}?" if near else "")
