"""`rahf env`: what a bug report needs to know of an installation."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Holds no names of users, machines or folders, and no values of the environment."
    )


def run(_options: argparse.Namespace) -> int:
    lines = _lines()
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name.ljust(width)}  {value}")
    return 0


LIBRARIES = (
    "rahf",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "trl",
    "deepspeed",
    "bitsandbytes",
    "lm_eval",
    "gguf",
    "sae-lens",
)


def _lines() -> list[tuple[str, str]]:
    """Return names and values, the hardware last."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "not installed"))
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    python = ("python", platform.python_version())
    return [found[0], python, *found[1:], *_devices(), ("platform", system), *_machine()]


def _devices() -> list[tuple[str, str]]:
    import torch

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    build = torch.version.cuda or (torch.version.hip and f"ROCm {torch.version.hip}")
    return [
        ("torch built for", f"CUDA {build}" if torch.version.cuda else build or "CPU"),
        ("GPUs", ", ".join(_gpu(index) for index in gpus) or "none that PyTorch finds"),
    ]


def _gpu(index: int) -> str:
    import torch

    gpu = torch.cuda.get_device_properties(index)
    return f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)"


def _machine() -> list[tuple[str, str]]:
    import psutil

    cores = f"{psutil.cpu_count(logical=False) or 'unknown'} ({psutil.cpu_count()} logical)"
    return [("CPU cores", cores), ("memory", f"{psutil.virtual_memory().total / 2**30:.0f} GiB")]
