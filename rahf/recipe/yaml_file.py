"""YAML text and command line overrides -> plain mappings. Knows no key of a recipe."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rahf.artifacts import load_yaml
from rahf.recipe.fields import fits


def read_yaml(path: Path) -> tuple[dict[Any, Any], list[str]]:
    """Return the mapping in a YAML file, and what is wrong with the file; each problem names the
    line.
    """
    problems: list[str] = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return {}, [f"byte {error.start}: not UTF-8 text"]
    try:
        given = _load(text, problems)
    except yaml.YAMLError as error:
        return {}, [*problems, _syntax_problem(error)]
    if given is None:
        return {}, [*problems, "the file is empty"]
    if not isinstance(given, dict):
        return {}, [*problems, f"a recipe is a mapping of keys to values, not {given!r:.60}"]
    return given, problems


def _load(text: str, problems: list[str]) -> Any:
    """Return the value of a YAML text; equal keys are appended to `problems`."""

    def reading(text: str) -> _Loader:
        loader = _Loader(text)
        loader.problems = problems
        return loader

    return load_yaml(text, reading)


class _Loader(yaml.SafeLoader):
    """YAML silently keeps the last of two equal keys; here each is a problem."""

    problems: list[str]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                self.problems.append(
                    f"line {line}: {key.value} is given twice, first on line {lines[key.value]}"
                )
            lines.setdefault(key.value, line)
        return super().construct_mapping(node, deep=deep)


def _syntax_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not YAML: {' '.join(str(error).split())}"
    return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {error.problem}"


def parse_overrides(
    tokens: Iterable[str], annotation_of: Callable[[str], Any]
) -> tuple[dict[str, Any], list[str]]:
    """Turn `--key value`, `--key=value` and `--flag` (true) into {key: value}; return it with the
    problems.

    Values are YAML, but those of a text key are taken literally. The last of two equal keys
    counts. A dash in a key is an underscore.
    """
    tokens, overrides, problems = list(tokens), {}, []
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("--") or token == "--":
            problems.append(
                f"{token!r}: unexpected on the command line, a recipe key is --key value"
            )
            continue
        key, equals, text = token[2:].partition("=")
        key = key.replace("-", "_")
        if not equals and tokens and not tokens[0].startswith("--"):
            text = tokens.pop(0)
        elif not equals and fits(True, annotation_of(key)):
            text = "true"
        elif not equals:
            problems.append(f"--{key}: the value is missing, a recipe key is --key value")
            continue
        try:
            overrides[key] = _override_value(text, annotation_of(key))
        except yaml.YAMLError as error:
            problems.append(f"--{key} {text}: {_syntax_problem(error)}")
    return overrides, problems


def _override_value(text: str, annotation: Any) -> Any:
    text_only = not any(fits(sample, annotation) for sample in (0, 0.5, True, [], {}))
    if text_only and fits("", annotation) and text != "null":
        return text
    return _load(text, [])


def merge_overrides(
    given: Mapping[Any, Any], overrides: Mapping[str, Any]
) -> tuple[dict[Any, Any], list[str]]:
    """Return a copy of `given` with each dotted key set; missing mappings on the way are made."""
    merged, problems = _copy(given), []
    for dotted, value in overrides.items():
        *parents, name = dotted.split(".")
        place = merged
        for depth, parent in enumerate(parents, 1):
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                where = ".".join(parents[:depth])
                problems.append(f"--{dotted}: {where} is {place!r}, which has no keys")
                break
        else:
            place[name] = value
    return merged, problems


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def as_yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return shown.partition("\n")[0]
