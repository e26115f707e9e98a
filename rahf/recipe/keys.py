"""Which keys a recipe may have, what type each has, and the message for any other key.

Three families: options at the top level, options of the sections `teachers`, `evaluation` and
`compare`, and the fields of TrainingArguments at the top level and under `teachers`.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from rahf.recipe.comparison_options import CompareOptions
from rahf.recipe.data_options import DataOptions
from rahf.recipe.evaluation_options import EvaluationOptions
from rahf.recipe.fields import annotations
from rahf.recipe.method_options import MethodOptions
from rahf.recipe.model_options import ModelOptions
from rahf.recipe.other_names import OTHER_NAMES, REMOVED, REPLACED
from rahf.recipe.shift_options import TeacherOptions
from rahf.recipe.training_arguments import training_annotations

FLAT = (ModelOptions, DataOptions, MethodOptions)
SECTIONS = {
    "teachers": TeacherOptions,
    "evaluation": EvaluationOptions,
    "compare": CompareOptions,
}

# Fields of TrainingArguments that a recipe must not set.
REFUSED = {
    "hub_token": "remove it, a recipe is saved and shared: set the environment variable HF_TOKEN",
    "fsdp_config": "remove it, rahf shards the base itself: start with --accelerate_config fsdp2",
    "parallelism_config": "remove it, it takes a Python object: start with --accelerate_config",
    "resume_from_checkpoint": "remove it: the same command resumes from the last checkpoint in "
    "output_dir",
    "teachers.output_dir": "remove it: teachers are kept inside output_dir",
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


def every_key() -> dict[str, str]:
    """Return {dotted name: its help} of every key; fields of transformers have no help."""
    own = {
        full_name(section, spec.name): spec.metadata["help"]
        for _, section, options in groups()
        for spec in dataclasses.fields(options)
    }
    given = training_annotations().keys() - REFUSED.keys()
    fields = {full_name(place, name): "" for place in ("", "teachers") for name in given}
    return fields | own


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
