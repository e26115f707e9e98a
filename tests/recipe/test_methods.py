"""The table of methods: the one place that names them, their defaults, their published values."""

import ast
import dataclasses
from pathlib import Path

import pytest

import rahf
from rahf.recipe.method_options import MethodOptions
from rahf.recipe.methods import ALL_TEACHERS, METHODS, preset, with_defaults
from rahf.recipe.model_options import ModelOptions
from rahf.recipe.shift_options import TeacherOptions
from rahf.recipe.training_arguments import training_annotations

ROOT = Path(rahf.__file__).parent
MODULES = {
    str(path.relative_to(ROOT)): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "recipe" / "methods.py"
}


def methods_named(path):
    """Return the methods that a string constant of a file equals, with their lines; texts are
    longer.
    """
    return [
        f"line {node.lineno}: {node.value!r}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in METHODS
    ]


@pytest.mark.parametrize("module", MODULES)
def test_no_other_module_names_a_method(module):
    assert methods_named(MODULES[module]) == []


def test_the_table_itself_names_every_method():
    assert len(methods_named(ROOT / "recipe" / "methods.py")) >= len(METHODS)


def test_the_general_defaults_are_constants_and_those_of_one_method():
    options = MethodOptions()
    assert (options.alpha, options.response_source, options.pairs_together) == (2.0, "both", False)
    assert (options.sft_weight, options.align_weight, options.dpo_weight) == (0.0, 1.0, 0.0)
    for name in METHODS:
        other = MethodOptions(
            method=name,
            directions="x" if METHODS[name].reads_directions else None,
            layer_scale="none",
            similarity_weight=float(METHODS[name].needs_similarity),
        )
        assert (other.alpha, other.sft_weight, other.dpo_weight) == (2.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({}, {"alpha": 4.0, "pairs_together": True, "dpo_weight": 1.0}),
        ({"method": "dual", "dpo_weight": 0}, {"alpha": 4.0, "dpo_weight": 0}),
        ({"method": "scit"}, {"alpha": 6.0, "response_source": "chosen", "sft_weight": 2.0}),
        ({"method": "lorra", "sft_weight": 0}, {"sft_weight": 0, "align_weight": 0.25}),
        ({"method": "lorra", "alpha": "auto"}, {"alpha": "auto", "sft_weight": 2.0}),
        ({"method": "rmu"}, {"alpha": 6.5, "max_steps": 150, "response_source": "rejected"}),
        ({"method": "duel"}, {"method": "duel"}),
    ],
    ids=str,
)
def test_a_default_of_a_method_depends_on_no_other_key(given, held):
    whole = with_defaults(given)
    assert {key: whole[key] for key in held} == held
    assert with_defaults(whole) == whole


@pytest.mark.parametrize("name", ["dpo_shift", "direction"])
def test_a_method_without_defaults_of_its_own_leaves_what_is_given(name):
    assert with_defaults({"method": name, "alpha": 3}) == {"method": name, "alpha": 3}


def test_epochs_replace_a_default_number_of_steps():
    assert "max_steps" not in with_defaults({"method": "rmu", "num_train_epochs": 2})
    assert with_defaults({"method": "rmu", "num_train_epochs": 2, "max_steps": 3})["max_steps"] == 3


@pytest.mark.parametrize("name", METHODS)
def test_every_key_of_a_method_is_a_key_of_a_recipe(name):
    options = dataclasses.fields(MethodOptions) + dataclasses.fields(ModelOptions)
    known = {spec.name for spec in options} | training_annotations().keys()
    method = METHODS[name]
    assert method.defaults.keys() <= known
    assert method.published.keys() <= known | {"teacher_args"}


@pytest.mark.parametrize("name", METHODS)
def test_the_views_of_a_method_name_its_teachers(name):
    method = METHODS[name]
    for reference in method.references:
        views = method.views(reference)
        assert set(views.teachers()) <= set(method.teachers)
        assert (views.positive is None) == (views.negative is None)
    assert {*method.references} <= {"base", *method.teachers}


def test_every_teacher_can_be_given_by_path():
    assert set(ALL_TEACHERS) <= {spec.name for spec in dataclasses.fields(TeacherOptions)}


def test_a_method_without_published_values_has_no_preset():
    with pytest.raises(ValueError, match="'lorra' has no preset; methods with one are dual, scit,"):
        preset("lorra")


def test_a_preset_omits_the_keys_of_the_lora():
    assert not [key for key in preset("repbend") if key.startswith("lora_")]
    assert preset("repbend")["method"] == "repbend"
