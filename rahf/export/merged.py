"""Merge an adapter into its base, and check that the result predicts as the adapter does.

Knows models and files; knows no method.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rahf.models.adapters import base_of, load_model

TOLERANCE = 0.01
"""Mean KL divergence, nats per token, above which merged weights are another model."""

TEXTS = (
    "The station clock had stopped, so nobody on the platform knew whether the train was late.",
    "To make the dough, stir the flour into warm water, add salt, and let it rest for an hour.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n",
    "Wer zu spät kommt, findet keinen Platz mehr. Il pleut depuis ce matin.",
)


class Difference(NamedTuple):
    """Logits after against logits before, over the tokens of `TEXTS`."""

    largest: float  # of one logit
    divergence: float  # mean KL(before || after), nats per token
    same_top: float  # share of the tokens whose likeliest successor is the same

    def __str__(self) -> str:
        return (
            f"largest difference of a logit {self.largest:.2e}, KL divergence "
            f"{self.divergence:.2e} nats per token, same likeliest token {self.same_top:.1%}"
        )


def difference(before: Float[Tensor, "tokens vocab"], after: Tensor) -> Difference:
    before, after = before.double(), after.double()
    divergence = nn.functional.kl_div(
        after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="none"
    )
    return Difference(
        (after - before).abs().max().item(),
        divergence.sum(-1).mean().item(),
        (before.argmax(-1) == after.argmax(-1)).double().mean().item(),
    )


@torch.no_grad()
def logits_of(model: nn.Module, ids: list[Int[Tensor, " seq"]]) -> Float[Tensor, "tokens vocab"]:
    device = next(model.parameters()).device
    rows = [model(input_ids=row[None].to(device), use_cache=False).logits[0] for row in ids]
    return torch.cat(rows).float().cpu()


def _ids_of_texts(tokenizer: PreTrainedTokenizerBase) -> list[Int[Tensor, " seq"]]:
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    if not all(ids):
        raise ValueError(
            f"the tokenizer ({type(tokenizer).__name__}) gives no token for {TEXTS[0]!r}: it is "
            "not the model's. Put the model's own beside the adapter."
        )
    return [torch.tensor(row) for row in ids]


def _check_finite(logits: Tensor, what: str) -> None:
    if not logits.isfinite().all():
        raise ValueError(
            f"{what} predicts NaN or infinity, so nothing is merged: check the weights of the "
            "base, or merge in --dtype float32."
        )


def write_merged(
    adapter: str | Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str = "auto",
    base: str | None = None,
) -> Difference:
    """Merge `adapter` into its base and write the model, once it is shown to be the same.

    The written files are loaded anew for the comparison: dtype and serialisation are part
    of what is compared.

    Raises:
        ValueError: `adapter` is not an adapter; the merged model differs by more than `TOLERANCE`.
    """
    model = load_model(adapter, {"dtype": dtype}, base=base)
    if not isinstance(model, PeftModel):
        raise ValueError(f"{adapter} is not an adapter, so there is nothing to merge.")
    ids = _ids_of_texts(tokenizer)
    before = logits_of(model, ids)
    _check_finite(before, f"{adapter} on {base or base_of(adapter)}")
    staging = _staging_of(folder)
    model.merge_and_unload(safe_merge=True).save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    del model
    # In the format of the file, whatever it is.
    merged = load_model(staging, {"dtype": "auto"})
    found = difference(before, logits_of(merged, ids))
    if not found.divergence <= TOLERANCE:
        shutil.rmtree(staging)
        raise ValueError(
            f"the merged model differs from base and adapter: {found}. Nothing was written; merge "
            "in another dtype (--dtype float32). Where that does not help, the model reads "
            "a matrix past its adapter: export the adapter only (--formats adapter)."
        )
    shutil.rmtree(folder, ignore_errors=True)
    staging.replace(folder)
    return found


def _staging_of(folder: Path) -> Path:
    """Return the name of the folder that is then renamed, where nothing is."""
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    if staging.is_symlink():  # which rmtree leaves, and which would be written through
        staging.unlink()
    return staging
