"""Options of the commands that load a model: which one, in which dtype, where."""

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

from rahf.data.hub import refuse_missing

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Loaded(NamedTuple):
    """A model in evaluation mode, and its tokenizer."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def model_options(parser: argparse.ArgumentParser, *, named: bool = True) -> None:
    """Add the options; `named`: with --model, --base and --chat_template of one model."""
    option = parser.add_argument
    if named:
        option("--model", required=True, metavar="NAME", help="model or adapter: folder or Hub id")
        option("--base", metavar="NAME", help="base in place of the one that the adapter names")
        option(
            "--chat_template",
            metavar="FILE",
            help="chat template, Jinja text or file (default: the tokenizer's)",
        )
        parser.set_defaults(check=check_names)
    option(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="dtype of the weights; auto: that of the checkpoint (default: auto)",
    )
    option(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)"
    )
    option("--attn_implementation", metavar="NAME", help="eager, sdpa, flash_attention_2")
    option("--trust_remote_code", action="store_true", help="run code that comes with the model")


def check_names(options: argparse.Namespace) -> None:
    """Refuse a --model or --base that is not there, before torch is imported."""
    refuse_missing(options.model, what=f"--model {options.model:.200}")
    if options.base is not None:
        refuse_missing(options.base, what=f"--base {options.base:.200}")


def load(options: argparse.Namespace, name: str | None = None) -> Loaded:
    """Load the model `name`, or the one of --model, and its tokenizer."""
    from rahf.models.adapters import load_model, load_tokenizer_of

    name, base = (options.model, options.base) if name is None else (name, None)
    place = device(options)  # a wrong one is refused before anything is loaded
    try:
        tokenizer = load_tokenizer_of(name, base, trust_remote_code=options.trust_remote_code)
        return Loaded(load_model(name, loading(options), place, base), tokenizer)
    except (OSError, ValueError) as error:
        error.add_note(str(name))
        raise


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `from_pretrained`."""
    chosen = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    if options.attn_implementation:
        chosen["attn_implementation"] = options.attn_implementation
    return chosen


def device(options: argparse.Namespace) -> "torch.device":
    """Return the device of --device, or a GPU if there is one.

    Raises:
        ValueError: no such device here.
    """
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.device is None:
        return torch.device("cuda" if there else "cpu")
    try:
        chosen = torch.device(options.device)
    except RuntimeError:
        raise ValueError(
            f"--device {options.device!r} is not a device; give cpu, cuda, cuda:1, ..."
        ) from None
    if chosen.type == "cuda" and (chosen.index or 0) >= there:
        here = f"cuda:0 to cuda:{there - 1}" if there else "none"
        raise ValueError(
            f"--device {options.device}: GPUs that PyTorch finds here: {here}; give one, or cpu."
        )
    if chosen.type == "meta" or (chosen.type == "cpu" and chosen.index):
        raise ValueError(f"--device {options.device} computes nothing; give cpu or a GPU.")
    if chosen.type not in ("cpu", "cuda") and not _responds(chosen):
        raise ValueError(f"--device {options.device}: PyTorch finds no such device; give another.")
    return chosen


def _responds(chosen: "torch.device") -> bool:
    """Return whether a device of a rarer type, such as mps or xpu, takes a tensor."""
    import torch

    try:
        torch.zeros(1, device=chosen)
    except Exception:
        return False
    return True


def identity(options: argparse.Namespace, name: str | None = None) -> dict[str, Any]:
    """Return the settings of a model that took part in a result."""
    return {"model": name or options.model, "dtype": options.dtype}


def content(options: argparse.Namespace) -> dict[str, str | None]:
    """Return the identity of everything that --model answers from: its files, those of its base."""
    from rahf.artifacts import identity_of
    from rahf.models.adapters import base_of

    base = options.base or base_of(options.model)
    template = options.chat_template
    files = template if template and "{" not in template else ""
    return {
        "model": identity_of(options.model),
        "base": identity_of(base) if base else None,
        "chat_template": identity_of(files) if files else None,
    }
