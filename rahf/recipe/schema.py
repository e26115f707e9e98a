"""The JSON Schema of recipes, with which an editor completes keys and marks wrong values.

Made from the options, as docs/recipe.md is: `python -m rahf.recipe.schema` prints it. Checks types,
choices and limits of single values; `rahf validate` checks all else.
"""

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rahf.recipe.fields import Limits, annotations, whole_type
from rahf.recipe.keys import REFUSED, SECTIONS, default_of, full_name, groups
from rahf.recipe.training_arguments import training_annotations

NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
"""A number in quotes, or one that YAML 1.1 reads as text: 1e-4."""

_JSON_TYPES = {bool: "boolean", str: "string", dict: "object", list: "array"}
_NUMBERS = {int: "integer", float: "number"}


def recipe_schema() -> dict[str, Any]:
    """Return the schema, with the fields of the installed transformers."""
    top = _options("")
    sections = {name: _object(_options(name)) for name in SECTIONS}
    for name, cls in SECTIONS.items():
        sections[name]["description"] = (cls.__doc__ or "").partition("\n")[0]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "recipe of rahf",
        **_object({**top, **sections}),
        "required": ["model_name_or_path", "output_dir"],
    }


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _options(section: str) -> dict[str, Any]:
    """Return the schema of each key of a section, "" being the top level."""
    found = {}
    for _, name, cls in groups():
        kinds = annotations(cls)
        for spec in dataclasses.fields(cls) if name == section else ():
            found[spec.name] = _described(spec, schema_of(kinds[spec.name]))
    if section in ("", "teachers"):
        for name, kind in training_annotations().items():
            if full_name(section, name) not in REFUSED and name not in REFUSED:
                found.setdefault(name, schema_of(kind) | {"description": "TrainingArguments"})
    return found


def _described(spec: dataclasses.Field, schema: dict[str, Any]) -> dict[str, Any]:
    default = default_of(spec)
    known = {} if default is dataclasses.MISSING else {"default": default}
    return {"description": spec.metadata["help"], **known, **schema}


def schema_of(annotation: Any) -> dict[str, Any]:
    """Return the schema of an annotated value, as `fields.value_problem` checks it."""
    origin = get_origin(annotation)
    if origin is Annotated:
        limits = [part for part in annotation.__metadata__ if isinstance(part, Limits)]
        return _limited(schema_of(whole_type(annotation)), limits)
    if origin in (Union, types.UnionType):
        return _any_of([schema_of(part) for part in get_args(annotation)])
    if origin is Literal:
        choices = list(get_args(annotation))
        return {"enum": [*choices, *([False] if "no" in choices else [])]}  # YAML 1.1's no
    kind = origin or annotation
    if kind in _NUMBERS:
        return _any_of([{"type": _NUMBERS[kind]}, {"type": "string", "pattern": NUMBER}])
    if annotation in (None, type(None)):
        return {"type": "null"}
    return {"type": _JSON_TYPES[kind]} if kind in _JSON_TYPES else {}


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    flat = [part for schema in schemas for part in schema.get("anyOf", [schema])]
    unique = [part for place, part in enumerate(flat) if part not in flat[:place]]
    return {} if {} in unique else unique[0] if len(unique) == 1 else {"anyOf": unique}


def _limited(schema: dict[str, Any], limits: list[Limits]) -> dict[str, Any]:
    bounds = {}
    for limit in limits:
        named = (
            ("minimum", limit.least),
            ("exclusiveMaximum", limit.below),
            ("exclusiveMinimum", limit.above),
        )
        bounds |= {name: bound for name, bound in named if math.isfinite(bound)}
    parts = schema.get("anyOf", [schema])
    return _any_of([{**part, **bounds} if _is_number(part) else part for part in parts])


def _is_number(part: Mapping[str, Any]) -> bool:
    return part.get("type") in _NUMBERS.values()


if __name__ == "__main__":
    print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))
