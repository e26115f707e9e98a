"""The script of docs/guard.md runs as it is written, but for its model and its files."""

import json
import re
from pathlib import Path

import pytest
from tiny_models import D_MODEL, DEPTH, tiny_model, tiny_tokenizer
from torch import ones

import rahf

PAGE = Path(rahf.__file__).parents[1] / "docs" / "guard.md"


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_the_script_runs(tmp_path, monkeypatch):
    script = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    rahf.Directions(tuple(range(DEPTH)), ones(DEPTH, D_MODEL)).save(tmp_path / "out" / "sour")
    pairs = [
        {"prompt": f"w{n} ", "chosen": f"w{n + 1} w{n + 2}", "rejected": f"w{n + 3}"}
        for n in range(4, 20)
    ]
    answers = [{"prompt": each["prompt"], "response": each["chosen"]} for each in pairs[:6]]
    for name, rows in (("pairs", pairs), ("answers", answers)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for written, tiny in (
        ('"Qwen/Qwen3-0.6B"', repr(str(base))),
        ("max_steps=200", 'max_steps=2, use_cpu=True, bf16=False, report_to="none"'),
        ("(16,)", "(2,)"),
    ):
        assert written in script
        script = script.replace(written, tiny)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(script, str(PAGE), "exec"), names)
    assert names["trainer"].state.global_step == 2
    assert "directions/sour" in names["trainer"].state.log_history[-2]
    assert (tmp_path / "out" / "dpo" / "adapter_model.safetensors").exists()
