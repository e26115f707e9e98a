"""The house's rules that a reader relies on: imports go down, modules stay small."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean, median

import pytest

import rahf

ROOT = Path(rahf.__file__).parent

LEVELS = (
    ("objective", "artifacts", "overrides", "foreign_warnings", "shipped"),
    ("data", "distributed", "records", "report"),
    ("models",),
    ("generation",),
    ("judges",),
    ("recipe",),
    ("terms", "plan", "trainer_config"),
    ("views", "evaluation"),
    ("directions",),
    ("alignment", "export", "guards", "interpret"),
    ("training",),
    ("trainer",),
    ("pipeline",),
    ("comparison",),
    ("influence",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""Packages, and modules at the top, from the ground up."""

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "trl", "matplotlib")

NO_VERB = re.compile(
    r"(A|All|An|Both|Each|Every|Figures|How|It|Its|Of|One|That|The|These|This|Those|Two|What|When"
    r"|Where|Whether|Which|Why|[^A-Z].*)$"
)
"""The first word of a docstring that describes a result in place of the action."""


def modules():
    """Return {dotted name below rahf: its file}, the package itself omitted."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = path
    return found


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Return modules of rahf that a file imports, inside functions and for type checking too."""
    known, names = modules(), set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {
                name if name.removeprefix("rahf.") in known else node.module for name in whole
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("rahf.") for name in names if name.startswith("rahf.")}


def package(name):
    return name.split(".")[0]


def level(name):
    for number, packages in enumerate(LEVELS):
        if package(name) in packages:
            return number
    raise AssertionError(f"rahf.{name} has no level: give its package one in LEVELS")


def functions():
    """Return {module.function: its lines}."""
    return {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, path in modules().items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_a_module_imports_its_own_package_or_lower_ones():
    assert [
        f"{name} (level {level(name)}) imports {other} (level {level(other)})"
        for name, path in modules().items()
        for other in imported(path)
        if level(other) >= level(name) and package(other) != package(name)
    ] == []


def test_no_module_imports_itself_by_a_detour():
    graph = {name: imported(path) for name, path in modules().items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(graph) <= set(order)


def test_every_level_names_packages_that_exist():
    known = {package(name) for name in modules()}
    assert [name for names in LEVELS for name in names if name not in known] == []


def test_a_module_needs_few_packages():
    """Count its own package too, where it imports from it."""
    needs = [imported(path) for path in modules().values() if path.name != "__init__.py"]
    assert fmean(len(set(map(package, names))) for names in needs) <= 2.5


def test_modules_are_small():
    sizes = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: size for name, size in sizes.items() if size > 350} == {}
    assert median(sizes.values()) <= 150


def test_functions_are_short():
    assert {name: size for name, size in functions().items() if size > 40} == {}


def test_few_modules_are_beside_the_packages():
    assert len(list(ROOT.glob("*.py"))) <= 12


def test_every_module_opens_with_what_it_does():
    assert [name for name, path in modules().items() if not ast.get_docstring(parsed(path))] == []


def test_docstrings_of_functions_begin_with_a_verb():
    assert [
        f"{path.relative_to(ROOT.parent)}, {node.name}: {text.splitlines()[0]}"
        for folder in (ROOT, ROOT.parent / "scripts")
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (text := ast.get_docstring(node))
        and NO_VERB.match(text.split()[0])
    ] == []


def test_packages_only_describe_what_is_inside():
    inits = [path for path in ROOT.rglob("__init__.py") if path.parent != ROOT]
    assert [str(path) for path in inits if len(parsed(path).body) != 1] == []


def test_annotations_stay_what_they_are():
    # Shapes in annotations are checked at run time, which texts would not be.
    assert [
        name
        for name, path in modules().items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ] == []


def test_files_are_named_after_the_domain():
    pattern_names = {"utils", "util", "helpers", "common", "misc", "managers", "factories", "base"}
    assert [name for name in modules() if set(name.split(".")) & pattern_names] == []


def loaded_by(statement):
    """Return heavy packages that are loaded after a statement, in a process of its own."""
    script = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    return done.stdout.split()


def test_a_process_of_a_test_imports_this_package_from_anywhere(tmp_path):
    command = [sys.executable, "-c", "import rahf; print(rahf.__file__)"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == str(ROOT / "__init__.py")


IN_ONE_PLACE = {
    ".expanduser(": ["artifacts"],  # which fails at "~x": artifacts.expanded
    '.partial"': [
        "artifacts",
        "export.merged",
        "influence.factors",
        "influence.passes",
    ],  # artifacts.staging_of
}
"""Text -> the only modules with it; the others use the function named beside it."""


@pytest.mark.parametrize("text", IN_ONE_PLACE)
def test_names_of_users_and_of_temporary_files_are_made_in_one_place(text):
    found = [name for name, path in modules().items() if text in path.read_text(encoding="utf-8")]
    assert [name for name in found if name not in IN_ONE_PLACE[text]] == []


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import rahf") == []
    assert loaded_by("import torch") == ["torch"]


def test_recipes_are_read_and_checked_without_torch():
    assert loaded_by("import rahf.cli, rahf.comparison.row_recipes, rahf.recipe.files") == []


def test_every_public_name_is_found_where_the_package_says():
    for name in rahf.__all__:
        assert getattr(rahf, name).__name__ == name
        assert name in dir(rahf)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = rahf.Nothing
