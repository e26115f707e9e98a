"""One thread, run-time checks of types and shapes in the core, this package for processes that
tests start, and the family of tiny models.

The checks have to be installed before the modules they check are imported.
"""

import os
from pathlib import Path

from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

# Modules of options are left out: they are given wrong values on purpose and answer with their own
# messages.
CHECKED = (
    "adapters",
    "alignment",
    "capture",
    "contrast",
    "decoding",
    "directions",
    "generation",
    "likelihood",
    "objective",
    "reading.fitters",
    "reading.fitting",
    "reading.samples",
    "steering",
    "teachers",
    "training",
)
install_import_hook([f"rahf.{name}" for name in CHECKED], "beartype.beartype")

import gc  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from tiny_models import Family, make_family  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    # Every run of the Trainer collects garbage; what has been imported need not be looked through.
    gc.freeze()


@pytest.fixture(scope="session")
def family(tmp_path_factory) -> Family:
    """A tiny Llama on disk and three adapters of it that were never trained: `random` teachers."""
    return make_family(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def gpt2_family(tmp_path_factory) -> Family:
    """The same with learned positions."""
    return make_family(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture
def tracked(monkeypatch) -> list[tuple[str, int, dict]]:
    """What `report_to: trackio` is told, as (output folder, step, values): no tracker is needed."""
    told = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append((args.output_dir, state.global_step, dict(logs)))

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "trackio", Tracker)
    return told
