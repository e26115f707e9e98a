"""The documents are readable and name what exists: commands, options, keys, targets, files."""

import argparse
import ast
import configparser
import importlib
import re
import textwrap
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

import rahf.cli as cli
from rahf.recipe.keys import SECTIONS, unknown_keys
from rahf.recipe.methods import METHODS
from rahf.trainer_config import RAHFConfig

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md"))]
DOCUMENTS = [*PAGES, *sorted(ROOT.glob("recipes/*/*.md"))]

LONGEST = 140

# Names in code that are neither a key, an option, a value nor a method.
OTHERS = {
    "hidden_states": "what transformers returns, whose indices are not block numbers",
    "down_proj": "a module of a model",
    "save_to_disk": "a function of datasets",
    "llama_cpp": "a package",
    "llama_set_adapter_cvec": "a function of llama.cpp",
    "malloc_trim": "a function of glibc",
    "peak_memory": "a field of stage.json",
    "main_process_port": "accelerate's",
    "gradient_checkpointing": "of the launch files of RAHF's authors",
    "system_prompt": "a column of a user's data",
    "tool_calls": "a key of a message",
    "reasoning_content": "a key of a message",
    "round_trip": "a scorer of explanations",
    "split_kind": "a column of the shipped test prompts",
    "seen_subject": "a value of split_kind",
    "new_subject": "a value of split_kind",
    "grad_norm": "logged by transformers",
    "preference_accuracy": "a figure of metrics.json",
    "preference_margin": "a figure of metrics.json",
    "judged_mean": "a figure of metrics.json",
    "unrelated_loss": "a figure of metrics.json",
    "peft_config": "an argument of RAHFTrainer",
    "modules_to_save": "of PEFT's LoraConfig",
    "base_model_name_or_path": "a key of adapter_config.json",
}


def name_of(path):
    return str(path.relative_to(ROOT))


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=name_of)


def blocks(text):
    """Return code blocks of a document as (language, content), and the text outside of them."""
    parts = re.split(r"^ *```(.*)\n", text, flags=re.MULTILINE)
    return list(zip(parts[1::4], parts[2::4], strict=True)), "\n".join(parts[0::4])


def spans(text):
    """Return code between single backticks outside of code blocks."""
    return re.findall(r"`([^`\n]+)`", blocks(text)[1])


def shell_lines(text):
    """Return command lines of a document, continued lines joined, comments removed."""
    shell = [content for language, content in blocks(text)[0] if language in ("bash", "")]
    lines = [line.removeprefix("$ ") for line in "\n".join(shell).replace("\\\n", " ").split("\n")]
    return [re.sub(r"\s#.*", "", line).strip() for line in [*lines, *spans(text)]]


def choices(parser):
    """Return the parsers of the commands of a parser, {} for one without commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def parsers():
    """Return {command: its parser}, each with its options; of a group, with those of its kinds."""
    found = {}
    for name, entry in cli.COMMANDS.items():
        kinds = entry.kinds if isinstance(entry, cli.Group) else [None]
        for kind in kinds:
            words = [name] if kind is None else [name, kind]
            parser = choices(cli._parser(words))[name]
            if kind is None:
                found[name] = parser
            else:
                found.setdefault(name, parser)
                choices(found[name])[kind] = choices(parser)[kind]
    return found


COMMANDS = parsers()


def options_of(parser):
    """Return options of a command and of the commands within it."""
    own = {option for action in parser._actions for option in action.option_strings}
    return own.union(*(options_of(inner) for inner in choices(parser).values()))


def texts_in(annotation):
    """Return texts of the Literals in an annotation."""
    inner = [text for part in get_args(annotation) for text in texts_in(part)]
    return [annotation] if isinstance(annotation, str) else inner


def is_key(name):
    """Return whether a recipe has this key; a section's keys are dotted."""
    section, _, key = name.rpartition(".")
    if section == "instructions":
        return key in ("positive", "negative")
    return (section == "" or section in SECTIONS) and not unknown_keys(section, [key])


def named_commands(text):
    """Return (command, its line) of every `rahf COMMAND` in code."""
    parts = [part.strip() for line in shell_lines(text) for part in re.split(r"[;&]+", line)]
    matches = [(re.match(r"(?:\w+=\S+ )*rahf ([a-z]+)", part), part) for part in parts]
    return [(match[1], part) for match, part in matches if match]


@each(DOCUMENTS)
def test_lines_are_short(path):
    # Lines of tables and lines with links cannot be broken.
    assert [
        f"{name_of(path)}:{number}: {len(line)} characters"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > LONGEST and not line.lstrip().startswith("|") and "](" not in line
    ] == []


@each(PAGES)
def test_paragraphs_are_short(path):
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d\.) |\s*\||#)", blocks(path.read_text())[1])
    assert [text for text in paragraphs if len(text.strip().splitlines()) > 5] == []


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 120


@each(DOCUMENTS)
def test_commands_that_a_document_names_exist(path):
    named = named_commands(path.read_text())
    assert [line for command, line in named if command not in COMMANDS] == []


@each(DOCUMENTS)
def test_options_of_a_command_exist(path):
    unknown = []
    for command, line in named_commands(path.read_text()):
        parser = COMMANDS.get(command, argparse.ArgumentParser())
        takes_keys = "--KEY" in (parser.usage or "")
        given = re.findall(r"(?<=\s)--([a-z][\w.]*)", line)
        unknown += [
            f"rahf {command} --{option}"
            for option in given
            if f"--{option}" not in options_of(parser) and not (takes_keys and is_key(option))
        ]
    assert unknown == []


@each(DOCUMENTS)
def test_options_of_a_script_exist(path):
    unknown = []
    for line in shell_lines(path.read_text()):
        if match := re.search(r"python (scripts/\S+\.py)", line):
            script = ROOT / match[1]
            assert script.is_file(), line
            source = script.read_text()
            unknown += [
                f"{match[1]} --{option}"
                for option in re.findall(r"(?<=\s)--([a-z][\w.]*)", line)
                if f'"--{option}"' not in source and not is_key(option)
            ]
    assert unknown == []


@each(DOCUMENTS)
def test_options_and_keys_in_the_text_exist(path):
    options = set().union(*(options_of(parser) for parser in COMMANDS.values()))
    scripts = "".join(script.read_text() for script in ROOT.glob("scripts/**/*.py"))
    values = {text for hint in get_type_hints(RAHFConfig).values() for text in texts_in(hint)}
    known = {*METHODS, *OTHERS, *values, *RAHFConfig.__dataclass_fields__}
    unknown = []
    for span in spans(path.read_text()):
        if match := re.match(r"--([a-z][\w.]*)", span):
            fine = f"--{match[1]}" in options or is_key(match[1]) or f'"--{match[1]}"' in scripts
            fine = fine or match[1] in OTHERS
        elif match := re.match(r"([a-z][a-z_]*(?:\.[a-z_]+)?): ", span):
            fine = is_key(match[1]) or any(is_key(f"{name}.{match[1]}") for name in SECTIONS)
        elif re.fullmatch(r"[a-z]+(_[a-z]+)+|(teachers|evaluation|compare)\.[a-z_]+", span):
            fine = span in known or is_key(span) or f"--{span}" in options
            fine = fine or any(is_key(f"{name}.{span}") for name in SECTIONS)
            fine = fine or (ROOT / f"accelerate_configs/{span}.yaml").is_file()
        else:
            continue
        unknown += [] if fine else [span]
    assert unknown == []


@each(DOCUMENTS)
def test_python_of_a_document_is_valid_and_imports_what_exists(path):
    missing = []
    for language, content in blocks(path.read_text())[0]:
        if language != "python":
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(content))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rahf"):
                module = importlib.import_module(node.module)
                names = [alias.name for alias in node.names]
                missing += [name for name in names if not hasattr(module, name)]
    assert missing == []


@each(DOCUMENTS)
def test_keys_of_a_recipe_exist(path):
    unknown = []
    for language, content in blocks(path.read_text())[0]:
        if language != "yaml":
            continue
        for key, value in yaml.safe_load(content).items():
            unknown += unknown_keys("", [key])
            if key in SECTIONS:
                unknown += unknown_keys(key, value)
    assert unknown == []


def test_the_table_of_defaults_is_that_of_the_methods():
    text = (ROOT / "docs/method.md").read_text()
    table = text[text.index("## Defaults") :].split("\n\n")[2].splitlines()
    first, _, *lines = [re.findall(r"[^|]+", line) for line in table]
    keys = [cell.strip(" `") for cell in first[1:]]
    shown = {
        name: dict(zip(keys, map(yaml.safe_load, cells[1:]), strict=True))
        for cells in lines
        for name in re.findall(r"`(\w+)`", cells[0])
    }
    plain = shown["direction"]
    assert {name: plain | METHODS[name].defaults for name in shown} == shown
    assert set(shown) == {name for name, method in METHODS.items() if not method.pushes_away}


@each(DOCUMENTS)
def test_targets_of_make_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [
        target
        for line in shell_lines(path.read_text())
        for target in re.findall(r"^make ([a-z-]+)", line)
    ]
    assert [target for target in named if target not in targets] == []


@each(DOCUMENTS)
def test_extras_of_the_package_exist(path):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    given = re.findall(r"pip install .*?\[([a-z,]+)\]", path.read_text())
    named = {extra for extras in given for extra in extras.split(",")}
    assert named <= set(setup["options.extras_require"])


def anchors(path):
    """Return anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", blocks(path.read_text())[1], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each(DOCUMENTS)
def test_links_lead_somewhere(path):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


@each(DOCUMENTS)
def test_files_of_the_project_that_a_document_names_exist(path):
    code = "\n".join([blocks(path.read_text())[1], *shell_lines(path.read_text())])
    names = re.findall(r"(?<![\w/])(?:tests|scripts|docs|accelerate_configs)/[\w./-]+\.\w+", code)
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_the_map_of_the_readme_names_every_package_and_every_module_at_the_top():
    text = README.read_text()
    lines = text[text.index("## Map") :].split("```")[1].strip().splitlines()
    named = dict(line.split(maxsplit=1) for line in lines)
    package = ROOT / "rahf"
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert set(named) == modules | packages
    assert len(set(named.values())) == len(named)
