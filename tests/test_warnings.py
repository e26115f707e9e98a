"""What a user of the command line sees of other libraries' warnings: none that are not theirs."""

import ast
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from tiny_models import lora, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import rahf
from rahf.foreign_warnings import NOTES, WARNINGS, ignore_foreign_warnings, new_head_expected
from rahf.models.adapters import attach_policy, load_blocks
from rahf.recipe.training_arguments import without_checkpointing

ROOT = Path(rahf.__file__).parent

EVERYTHING = """
import contextlib, importlib, io, pkgutil, re, warnings
import rahf
from rahf.cli import main

names = [module.name for module in pkgutil.walk_packages(rahf.__path__, "rahf.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert "is_gradient_checkpointing" not in repr(warnings.filters)

def helped(*words):
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return told.getvalue()

def commands_of(text):
    of_group, of_rahf = text.partition("WHAT\\n")[2], text.partition("start:\\n")[2]
    indent, listed = (4, of_group) if of_group else (2, of_rahf.partition("options:")[0])
    return re.findall(rf"^ {{{indent}}}([a-z]+)\\b", listed, re.MULTILINE)

commands = commands_of(helped())
for command in commands:
    assert "usage: " in helped(command), command
    for part in commands_of(helped(command)):
        assert "usage: " in helped(command, part), (command, part)
print(len(names), " ".join(commands))
"""


def test_every_module_and_every_help_is_free_of_warnings_and_no_import_hides_any():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EVERYTHING], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # What other libraries log at their import is hidden by the command line only.
    told = done.stderr.splitlines()
    assert [line for line in told if not any(re.match(note.message, line) for note in NOTES)] == []
    count, *commands = done.stdout.split()
    assert int(count) == len(list(ROOT.rglob("*.py"))) - 1  # rahf itself
    assert {"align", "evaluate", "sweep", "validate"} <= set(commands)


def test_only_the_command_line_installs_the_filters():
    calling = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ignore_foreign_warnings"
    }
    assert calling == {"cli.py"}


def test_a_second_installation_adds_nothing():
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for _ in range(2):
            ignore_foreign_warnings()
        assert len(warnings.filters) == len(WARNINGS)
    for note in NOTES:
        filters = logging.getLogger(note.logger).filters
        assert len(filters) == sum(other.logger == note.logger for other in NOTES)


SAID = {
    "DeepSpeed": "Setting accelerator to CPU. If you have GPU or other accelerator, ...",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
}


@pytest.mark.parametrize("name", SAID)
def test_a_named_note_is_hidden_and_the_rest_of_its_library_is_not(name, caplog):
    ignore_foreign_warnings()
    logger = logging.getLogger(name)
    logger.addHandler(caplog.handler)  # DeepSpeed's records stay with DeepSpeed's handler
    try:
        logger.warning(SAID[name])
        logger.warning("out of memory")
    finally:
        logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"out of memory"}


def test_a_hidden_warning_hides_no_other_of_its_category():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ignore_foreign_warnings()
        warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("`gradient_checkpointing` is deprecated", FutureWarning, stacklevel=1)
    assert [str(one.message) for one in told] == ["`gradient_checkpointing` is deprecated"]


@pytest.fixture
def reported():
    """Yield messages of transformers' loading that are shown."""
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_a_new_head_is_reported_only_where_it_is_not_expected(tmp_path, reported):
    tiny_model().save_pretrained(tmp_path)
    with new_head_expected():
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    assert reported == []
    AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    assert "score.weight" in reported[0]


def test_the_lower_blocks_of_a_model_load_without_a_report_of_those_above(tmp_path, reported):
    tiny_model().save_pretrained(tmp_path)
    load_blocks(tmp_path, 1)
    assert reported == []
    AutoModelForCausalLM.from_pretrained(tmp_path, num_hidden_layers=1)
    assert "LOAD REPORT" in reported[0]


def test_a_weight_that_is_missing_beside_the_head_is_reported(tmp_path, reported):
    base = tiny_model()
    weights = {name: weight for name, weight in base.state_dict().items() if "norm" not in name}
    base.save_pretrained(tmp_path, state_dict=weights)
    with new_head_expected():
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    assert "norm.weight" in reported[0]


def test_checkpointing_is_off_for_trl_unless_it_is_asked_for():
    off = {"activation_checkpointing": False}
    assert without_checkpointing({"seed": 1}) == {**off, "seed": 1}
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        assert without_checkpointing({name: True}) == {name: True}


@pytest.mark.parametrize(("architecture", "transposed"), [("gpt2", True), ("llama", False)])
def test_the_lora_follows_how_the_base_stores_its_matrices(architecture, transposed):
    model = attach_policy(tiny_model(architecture), lora(), range(2))  # a warning is an error
    assert model.peft_config["default"].fan_in_fan_out is transposed
