"""The house's rules that a reader relies on: imports go downwards, modules stay small."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

import rahf

ROOT = Path(rahf.__file__).parent

LEVELS = (
    # pure functions, tensors, files: each of them knows nothing of the others
    (
        "objective",
        "capture",
        "contrast",
        "packing",
        "artifacts",
        "data",
        "decoding",
        "foreign_warnings",
        "intervals",
        "evaluation.judge_names",
        "recipe.combinations",
        "recipe.launch",
        "recipe.layers",
        "recipe.options",
        "recipe.presets",
        "recipe.training_arguments",
        "recipe.yaml_file",
        "plan.shapes",
        "scoring",
        "termination",
    ),
    ("sharding", "costs", "launching", "recipe.measuring"),
    ("stages",),
    ("config", "adapters", "directions", "likelihood", "generation", "urial"),
    ("recipe", "prediction_terms", "checkpoints", "control_vector"),
    ("alignment",),
    ("resuming", "steering", "merging", "target_cache"),
    ("training",),
    ("teachers", "evaluation", "interpret", "reading", "reward", "dpo"),
    ("trainer", "loading", "report", "responses"),
    ("choosing", "plan", "reading.command", "hub"),
    ("pipeline",),
    ("baselines", "export", "sweep"),
    ("comparison",),
    ("commands",),
    ("cli",),
    ("__main__",),
)

ONLY = {
    "objective": set(),
    "capture": set(),
    "contrast": set(),
    "packing": set(),
    "decoding": set(),
    "data": {"data"},
    "evaluation": {
        *("adapters", "contrast", "data", "decoding", "evaluation", "generation", "intervals"),
        *("likelihood", "scoring"),
    },
    # never the trainer, never evaluation
    "interpret": {
        *("adapters", "artifacts", "contrast", "data", "decoding", "generation", "interpret"),
        *("intervals", "likelihood"),
    },
    # reads what other stages have written, never loads a model
    "report": {"artifacts", "report"},
}
"""Rooms that may use a few others alone, whatever stands below them."""


def modules():
    """{dotted name below rahf: its file}, the package itself left out."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = path
    return found


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def running_nodes(tree):
    """All nodes but those under `if TYPE_CHECKING` and `if __name__ == "__main__"`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If):
            names = {part.id for part in ast.walk(node.test) if isinstance(part, ast.Name)}
            if names & {"TYPE_CHECKING", "__name__"}:
                waiting.extend(node.orelse)
                continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def imported(path):
    """Modules of rahf that a file imports, also inside of functions."""
    known, names = modules(), set()
    for node in running_nodes(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {
                name if name.removeprefix("rahf.") in known else node.module for name in whole
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("rahf.") for name in names if name.startswith("rahf.")}


def level(name):
    """The level of a module: its own entry, or that of its package."""
    for candidate in (name, name.split(".")[0]):
        for number, rooms in enumerate(LEVELS):
            if candidate in rooms:
                return number
    raise AssertionError(f"rahf.{name} has no level: give it one in LEVELS")


def room(name):
    return name.split(".")[0]


def test_imports_go_downwards_or_stay_in_their_room():
    wrong = [
        f"{name} (level {level(name)}) imports {other} (level {level(other)})"
        for name, path in modules().items()
        for other in imported(path)
        if level(other) >= level(name) and room(other) != room(name)
    ]
    assert not wrong


def test_no_module_imports_itself_by_a_detour():
    graph = {name: imported(path) for name, path in modules().items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(graph) <= set(order)


@pytest.mark.parametrize("name", ONLY)
def test_some_rooms_use_only_what_they_name(name):
    used = {
        room(other)
        for module, path in modules().items()
        if room(module) == name
        for other in imported(path)
    }
    assert used <= ONLY[name]


def test_every_level_names_rooms_that_exist():
    known = set(modules()) | {room(name) for name in modules()}
    assert [name for rooms in LEVELS for name in rooms if name not in known] == []


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_modules_are_small():
    sizes = {name: lines(path) for name, path in modules().items()}
    assert {name: size for name, size in sizes.items() if size > 400} == {}
    assert median(sizes.values()) <= 150


def test_functions_are_short():
    sizes = {}
    for name, path in modules().items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sizes[f"{name}.{node.name}"] = node.end_lineno - node.lineno + 1
    assert {name: size for name, size in sizes.items() if size > 80} == {}
    long = [name for name, size in sizes.items() if size > 40]
    assert len(long) <= 0.05 * len(sizes), long


def test_every_module_opens_with_what_it_does():
    assert [name for name, path in modules().items() if not ast.get_docstring(parsed(path))] == []


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


HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "trl", "matplotlib")


def loaded_by(statement):
    """Heavy packages that are loaded after a statement, in a process of its own."""
    script = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    return done.stdout.split()


def test_a_process_of_a_test_imports_this_package_from_anywhere(tmp_path):
    command = [sys.executable, "-c", "import rahf; print(rahf.__file__)"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == str(ROOT / "__init__.py")


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import rahf") == []
    assert loaded_by("import torch") == ["torch"]


def test_recipes_are_read_and_checked_without_torch():
    assert loaded_by("import rahf.cli, rahf.recipe.comparing, rahf.config") == []


def test_every_public_name_is_found_where_the_package_says():
    for name in rahf.__all__:
        assert getattr(rahf, name).__name__ == name
        assert name in dir(rahf)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = rahf.Nothing
