"""constraints.txt: exact versions, within the ranges that setup.cfg declares."""

import configparser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rahf.recipe.transformers_source import REQUIREMENT

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11.0", "3.12.0", "3.13.0")


def declared():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = "\n".join(texts).split("\n")
    return [Requirement(line) for line in lines if line and not line.startswith("rahf[")]


def locked(python):
    """Return {name: pinned requirement} of the packages that a Python on Linux gets."""
    environment = {
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {
        pin.name.lower().replace("_", "-"): pin
        for pin in pins
        if pin.marker is None or pin.marker.evaluate(environment)
    }


def test_an_error_about_a_missing_transformers_names_the_declared_range():
    assert Requirement(REQUIREMENT) in declared()


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_every_range_that_is_declared(python):
    pins = locked(python)
    for requirement in declared():
        [pinned] = pins[requirement.name.lower().replace("_", "-")].specifier
        assert pinned.version in requirement.specifier, requirement


def test_the_lock_pins_one_exact_version_of_every_package_without_a_local_label():
    pins = locked(PYTHONS[0]).values()
    assert [str(pin) for pin in pins if [s.operator for s in pin.specifier] != ["=="]] == []
    assert [str(pin) for pin in pins if "+" in str(pin.specifier)] == []


def test_every_range_has_a_lower_end():
    open_ended = [
        str(requirement)
        for requirement in declared()
        if not any(specifier.operator == ">=" for specifier in requirement.specifier)
    ]
    assert open_ended == []
