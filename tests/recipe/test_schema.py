"""The JSON Schema of recipes takes what `rahf` takes, as far as a schema can tell."""

import json
import re
from pathlib import Path

import pytest
import yaml

from rahf.recipe.recipe import RecipeError, recipe_from_dict
from rahf.recipe.schema import recipe_schema

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "recipes" / "recipe.schema.json"
RECIPES = sorted(ROOT.glob("recipes/*/*.yaml"))
SMALL = {"model_name_or_path": "org/model", "dataset_name": "org/pairs", "output_dir": "out"}

IS = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: is_number(value) and float(value).is_integer(),
    "number": lambda value: is_number(value),
}
KNOWN = {
    *("$schema", "title", "description", "default", "type", "enum", "anyOf", "pattern"),
    *("properties", "additionalProperties", "required"),
    *("minimum", "exclusiveMinimum", "exclusiveMaximum"),
}


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def faults(value, schema, where="recipe"):
    """Return what a validator of the keywords in use would report."""
    assert set(schema) <= KNOWN
    if "anyOf" in schema:
        parts = [faults(value, part, where) for part in schema["anyOf"]]
        return [] if [] in parts else parts[0]
    wrong = (
        ("type" in schema and not IS[schema["type"]](value))
        or (
            "enum" in schema
            and not any(value == c and type(value) is type(c) for c in schema["enum"])
        )
        or ("pattern" in schema and not re.search(schema["pattern"], value))
        or ("minimum" in schema and value < schema["minimum"])
        or ("exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"])
        or ("exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"])
    )
    if wrong:
        return [f"{where}: {value!r}"]
    found = [
        f"{where}: {name} is missing" for name in schema.get("required", ()) if name not in value
    ]
    if "properties" in schema:
        for name, inner in value.items():
            known = schema["properties"].get(name)
            if known is None:
                found.append(f"{where}.{name}: unknown")
            else:
                found += faults(inner, known, f"{where}.{name}")
    return found


@pytest.fixture
def schema():
    return json.loads(SHIPPED.read_text())


def test_the_shipped_schema_is_that_of_the_options(schema):
    made = json.loads(json.dumps(recipe_schema()))
    arguments = {"description": "TrainingArguments"}
    for part in (made, schema):  # fields of the installed transformers may be others
        for holder in (part, part["properties"]["teachers"]):
            holder["properties"] = {
                name: value
                for name, value in holder["properties"].items()
                if not arguments.items() <= value.items()
            }
    assert schema == made, "run: make docs"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_recipe_names_the_schema_and_fits_it(path, schema):
    text = path.read_text()
    [named] = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", text, re.MULTILINE)
    assert (path.parent / named).resolve() == SHIPPED
    assert faults(yaml.safe_load(text), schema) == []


@pytest.mark.parametrize(
    ("keys", "right"),
    [
        ({}, True),
        ({"alpha": "auto", "learning_rate": "1e-4", "lora_r": 10.0}, True),
        ({"target_layers": [3, 5], "save_strategy": False, "report_to": "none"}, True),
        ({"teachers": {"learning_rate": 1e-4, "max_steps": 20}}, True),
        ({"evaluation": {"max_new_tokens": 8}, "instructions": {"positive": "a"}}, True),
        ({"alhpa": 3}, False),
        ({"method": "dpo"}, False),
        ({"lora_r": 0}, False),
        ({"lora_dropout": 1.0}, False),
        ({"learning_rate": "fast"}, False),
        ({"use_dora": "yes"}, False),
        ({"teachers": {"alpha": 1}}, False),
        ({"evaluation": ["length"]}, False),
        ({"output_dir": 3}, False),
    ],
)
def test_the_schema_and_the_check_of_a_recipe_agree(keys, right, schema):
    recipe = SMALL | keys
    assert (faults(recipe, schema) == []) == right
    if right:
        recipe_from_dict(recipe)
    else:
        with pytest.raises(RecipeError):
            recipe_from_dict(recipe)
