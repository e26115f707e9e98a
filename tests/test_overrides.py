"""What is overridden in other libraries' classes is known to be there."""

import importlib
import inspect
import pkgutil

import pytest
from transformers import Trainer, TrainingArguments

import rahf
from rahf.overrides import overrides, set_existing


def classes():
    for module in pkgutil.walk_packages(rahf.__path__, "rahf."):
        if module.name.endswith("__main__"):
            continue
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if found.__module__ == module.name:
                yield found


def foreign_owner(cls, name):
    """Return the class of transformers, trl or peft whose method `name` a class replaces."""
    for base in cls.__mro__[1:]:
        if base.__module__.split(".")[0] in ("transformers", "trl", "peft") and name in vars(base):
            return base
    return None


def test_every_method_that_is_overridden_is_checked_to_exist():
    unmarked = [
        f"{cls.__module__}.{cls.__name__}.{name}"
        for cls in classes()
        for name, method in vars(cls).items()
        if inspect.isfunction(method) and not name.startswith("__") and foreign_owner(cls, name)
        if not hasattr(method, "overridden")
    ]
    assert unmarked == []


def test_parameters_of_a_private_method_are_those_of_the_method_overridden():
    differing = {}
    for cls in classes():
        for name, method in vars(cls).items():
            owner = getattr(method, "overridden", None)
            if owner is None or not name.startswith("_"):
                continue
            own = inspect.signature(method).parameters.values()
            if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own):
                continue
            theirs = list(inspect.signature(getattr(owner, name)).parameters)
            if [parameter.name for parameter in own] != theirs:
                differing[f"{cls.__name__}.{name}"] = theirs
    assert differing == {}


def test_a_method_that_a_release_has_renamed_is_an_error_when_the_class_is_made():
    with pytest.raises(ImportError, match=r"Trainer of transformers [\d.]+ has no _run_one_epoch"):

        class Own(Trainer):
            @overrides(Trainer)
            def _run_one_epoch(self):
                pass


def test_an_attribute_that_nobody_reads_is_not_set():
    arguments = object.__new__(TrainingArguments)
    with pytest.raises(AttributeError, match=r"TrainingArguments of transformers .* has no n_gpus"):
        set_existing(arguments, "n_gpus", 1)
