"""Types and names that the source of the installed transformers holds, read without importing it,
which takes seconds and needs torch.

Knows the syntax of Python; knows no key of a recipe.
"""

import ast
import importlib.util
from pathlib import Path
from typing import Any, Literal, Union

REQUIREMENT = "transformers>=5.23,<6"
"""As setup.cfg declares it."""

SIMPLE = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "list": list}


def parse_source(name: str) -> ast.Module:
    spec = importlib.util.find_spec("transformers")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise RuntimeError(
            "transformers is not installed, so the training keys of a recipe are unknown: "
            f'pip install "{REQUIREMENT}"'
        )
    path = Path(folders[0], name)
    if not path.is_file():
        raise RuntimeError(
            f"{path} does not exist: this release of transformers is laid out differently; "
            f'pip install "{REQUIREMENT}"'
        )
    return ast.parse(path.read_text(encoding="utf-8"))


def enums(tree: ast.Module) -> dict[str, Any]:
    """Return the string enums of a module: {name: Literal of the values}."""
    return {
        node.name: Literal[tuple(line.value.value for line in node.body if _is_text(line))]
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(map(_is_text, node.body))
    }


def _is_text(line: ast.stmt) -> bool:
    return (
        isinstance(line, ast.Assign)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def annotation(node: ast.expr, types: dict[str, Any]) -> Any:
    match node:
        case ast.Name(id=name):
            return types.get(name, Any)
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union([annotation(left, types), annotation(right, types)])
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _union([annotation(inner, types), None])
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            return _union([annotation(part, types) for part in parts])
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Constant(value=choice)):
            return Literal[choice]
        case ast.Subscript(value=ast.Name(id=name)):
            return types.get(name, Any)
    return Any


def _union(parts: list[Any]) -> Any:
    """Return the type of a union. `SchedulerType | str` accepts only the values of the enum: other
    text has no use there.
    """
    if Any in parts:
        return Any
    enums = [part for part in parts if getattr(part, "__origin__", None) is Literal]
    if str in parts and any(isinstance(enum.__args__[0], str) for enum in enums):
        parts = [part for part in parts if part is not str]
    return Union[tuple(parts)]  # noqa: UP007 - `|` takes no list
