"""One thread, run-time checks of types and shapes in the core, this package for processes that
tests start, and the family of tiny models.

The checks have to be installed before the modules they check are imported.
"""

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

# Modules of options are left out: they are given wrong values on purpose and answer with their own
# messages.
CHECKED = (
    "alignment",
    "data.contrast",
    "directions.evidence",
    "directions.fitters",
    "directions.states",
    "directions.steering",
    "directions.vectors",
    "generation.answers",
    "generation.decoding",
    "interpret.explanations.examples",
    "interpret.explanations.predict",
    "interpret.explanations.records",
    "interpret.explanations.units",
    "interpret.features.clustered",
    "interpret.features.coder",
    "interpret.features.dictionary",
    "interpret.features.explained",
    "interpret.features.firing",
    "interpret.features.held_out",
    "interpret.features.intervention",
    "interpret.features.logit_effects",
    "interpret.features.movement",
    "interpret.features.probes",
    "interpret.features.probing",
    "interpret.features.pursuit",
    "interpret.features.quality",
    "interpret.features.responses",
    "interpret.features.rivals",
    "interpret.features.splitting",
    "interpret.features.store",
    "interpret.features.streams",
    "interpret.features.texts",
    "interpret.features.topk",
    "interpret.features.universality",
    "models.adapters",
    "models.capture",
    "models.likelihood",
    "objective",
    "training.adapter_trainer",
    "training.teachers",
)
install_import_hook([f"rahf.{name}" for name in CHECKED], "beartype.beartype")

import gc  # noqa: E402
import json  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from tiny_models import UPPER, Family, make_family  # noqa: E402
from tiny_recipes import WORDS, write_lines  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK  # noqa: E402

from rahf.data.hub import ask_hub  # noqa: E402
from rahf.data.sources import hub_splits  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    # Every run of the Trainer collects garbage; what has been imported need not be looked through.
    gc.freeze()


@pytest.fixture(scope="session")
def family(tmp_path_factory) -> Family:
    """Save a tiny Llama and three adapters of it that were never trained: `random` teachers."""
    return make_family(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def upper_family(tmp_path_factory) -> Family:
    """Save the same with adapters in the upper blocks only."""
    return make_family(tmp_path_factory.mktemp("upper"), "llama", list(UPPER))


@pytest.fixture(scope="session")
def gpt2_family(tmp_path_factory) -> Family:
    """Save the same with learned positions."""
    return make_family(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(autouse=True)
def hub_as_before(monkeypatch) -> None:
    """Leave no answer of the Hub to the next test, and use it only where a test turns that on."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ask_hub.cache_clear()
    hub_splits.cache_clear()


@pytest.fixture
def tracked(monkeypatch) -> list[tuple[str, int, dict]]:
    """Record what `report_to: trackio` receives, as (output folder, step, values), without a
    tracker.
    """
    told = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append((args.output_dir, state.global_step, dict(logs)))

    module = ModuleType("trackio")
    module.__spec__ = ModuleSpec("trackio", None)
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "trackio", Tracker)
    return told


@pytest.fixture
def recipe_file(family: Family, tmp_path: Path, monkeypatch) -> Path:
    """Write a DUAL recipe on six pairs, with held-out pairs, prompts and unrelated text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pairs = [
        {
            "prompt": f"{WORDS[index]} {WORDS[index + 1]}",
            "chosen": " ".join(WORDS[index + 2 : index + 5]),
            "rejected": " ".join(WORDS[index + 7 : index + 9]),
        }
        for index in range(6)
    ]
    write_lines(tmp_path / "pairs/train.jsonl", pairs)
    write_lines(tmp_path / "pairs/test.jsonl", pairs[:3])
    write_lines(tmp_path / "texts.jsonl", [{"text": " ".join(WORDS[:8])}] * 2)
    recipe = {
        "method": "dual",
        "model_name_or_path": str(family.base),
        "dataset_name": "pairs",
        "output_dir": "out",
        "target_layers": "1-2",
        "lora_r": 2,
        "shift": "token",
        "retain_weight": 0.0,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "disable_tqdm": True,
        "use_cpu": True,
        "teachers": {"max_steps": 2},
        "evaluation": {
            "prompts": "pairs/test.jsonl",
            "unrelated_text": "texts.jsonl",
            "max_new_tokens": 3,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def compared(recipe_file: Path) -> Path:
    """Return the recipe with every row, two seeds, and two trials of sft and of dual."""
    recipe = yaml.safe_load(recipe_file.read_text())
    Path("urial.md").write_text(
        "# Instruction\n\nw2\n\n# Query:\n```\nw3\n```\n\n# Answer:\n```\nw4\n```\n"
    )
    texts = [{"text": " ".join(f"w{n}" for n in range(start, start + 6))} for start in range(2, 8)]
    Path("texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    recipe |= {"shift": "mean", "mean_responses": 4, "max_steps": 1, "learning_rate": 0.05}
    recipe["instructions"] = {"positive": "w2 w3", "negative": "w4 w5"}
    recipe["compare"] = {
        "seeds": [0, 1],
        "strengths": [1, 2],
        "judge": "length",
        "urial": "urial.md",
        "validation_share": 0.34,
        "trials": {
            "sft": [{"learning_rate": 0.01}, {"learning_rate": "2e-2"}],
            "dual": [{"alpha": 2}, {"alpha": 3}],
        },
    }
    recipe_file.write_text(yaml.safe_dump(recipe))
    return recipe_file
