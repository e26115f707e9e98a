"""Options of the commands that ask a model: which one, in which number format, where."""

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Loaded(NamedTuple):
    """A model that can be asked, and its tokenizer."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def model_options(parser: argparse.ArgumentParser, *, named: bool = True) -> None:
    """Add the options; `named`: with --model, --base and --chat_template of the one model that is
    asked.
    """
    option = parser.add_argument
    if named:
        option("--model", required=True, metavar="NAME", help="model or adapter: folder or Hub id")
        option("--base", metavar="NAME", help="base in place of the one that the adapter names")
        option(
            "--chat_template",
            metavar="FILE",
            help="Jinja text or file in place of the tokenizer's",
        )
    option(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="number format of the weights (auto: that of the checkpoint)",
    )
    option(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)"
    )
    option("--attn_implementation", metavar="NAME", help="eager, sdpa, flash_attention_2")
    option("--trust_remote_code", action="store_true", help="run code that comes with the model")


def load(options: argparse.Namespace, name: str | None = None) -> Loaded:
    """The model `name`, or the one of --model, and its tokenizer."""
    from rahf.models.adapters import load_model, load_tokenizer_of

    name, base = (options.model, options.base) if name is None else (name, None)
    tokenizer = load_tokenizer_of(name, base, trust_remote_code=options.trust_remote_code)
    return Loaded(load_model(name, loading(options), device(options), base), tokenizer)


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """Options of `from_pretrained`."""
    chosen = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    if options.attn_implementation:
        chosen["attn_implementation"] = options.attn_implementation
    return chosen


def device(options: argparse.Namespace) -> "torch.device":
    import torch

    chosen = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(chosen)


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
