"""Two ranks under prevention, watched, train what one process trains on the joined batches."""

import json
import sys
from pathlib import Path

import pytest
import torch
from ranks import ROOT, launched, run
from safetensors.torch import load_file

SCRIPT = "tests/distributed/guarded_training.py"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("alpha", ["1.5", "auto"])
def test_two_ranks_give_what_one_process_gives(tmp_path, alpha):
    one, two = tmp_path / "one", tmp_path / "two"
    run(sys.executable, str(ROOT / SCRIPT), str(one), alpha)
    launched("ddp_cpu.yaml", SCRIPT, str(two), alpha)
    weights, others = (load_file(Path(folder, "adapter.safetensors")) for folder in (one, two))
    assert weights.keys() == others.keys()
    for name in weights:  # a step of Adam moves a weight by up to 0.02
        torch.testing.assert_close(others[name], weights[name], rtol=1e-4, atol=5e-5)
    logs = [json.loads((folder / "log.json").read_text()) for folder in (one, two)]
    figures = [
        [{key: value for key, value in each.items() if "/" in key or key == "loss"} for each in log]
        for log in logs
    ]
    for first, second in zip(*figures, strict=True):
        assert second == pytest.approx(first, rel=1e-3, abs=1e-5)
