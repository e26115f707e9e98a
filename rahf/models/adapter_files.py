"""Read a finished adapter from its folder and put it on a model, beside those it has.

The base and the other adapters stay as they are. Knows peft; knows no loss and no data.
"""

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers import PreTrainedModel

from rahf.artifacts import expanded
from rahf.distributed.loaded_weights import refuse_incomplete, refuse_non_finite
from rahf.distributed.sharding import is_sharded
from rahf.models.base_weights import belongs_to, keeping_base

POLICY = "default"
"""PEFT writes the adapter of this name to the root of the folder, where `AutoPeftModelForCausalLM`
looks for it.
"""


def put_adapter(
    model: PreTrainedModel | PeftModel,
    folder: str | Path,
    name: str = POLICY,
    *,
    trainable: bool = False,
) -> PeftModel:
    """Put every tensor of the adapter in `folder` on `model`.

    Raises:
        ValueError: tensors of the adapter are missing, not finite, or belong to no module of
            `model`; the adapter changes the base, or cannot be loaded beside others.
    """
    files = [Path(folder) / file for file in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)]
    if Path(folder).is_dir() and not any(file.exists() for file in files):
        raise ValueError(
            f"{folder} holds an adapter_config.json but no {files[0].name}; give the folder of a "
            "finished training."
        )
    if isinstance(model, PeftModel):
        for config in (PeftConfig.from_pretrained(str(folder)), *model.peft_config.values()):
            refuse_trainable_tokens(config, f"the adapter {folder}")
    if is_sharded():
        refuse_dora(PeftConfig.from_pretrained(str(folder)), f"the adapter {folder}")
    with keeping_base(model, name, f"the adapter {folder}"), _naming_sizes(folder):
        return _loaded(model, folder, name, trainable)


def weights_hash(folder: str | Path) -> str | None:
    """Return the hash of the weights of an adapter; None: the folder has no file of them."""
    for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME):
        path = expanded(folder) / name
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def refuse_trainable_tokens(config: PeftConfig, what: str) -> None:
    """Refuse single trained tokens beside another adapter, because PEFT cannot switch them.

    Raises:
        ValueError: `config` has `trainable_token_indices`.
    """
    if getattr(config, "trainable_token_indices", None):
        raise ValueError(
            f"{what}: trainable_token_indices cannot be switched between adapters that do not all "
            "have them. Train without them, or with modules_to_save: [embed_tokens]; merge a "
            "finished adapter into its base and give the full model."
        )


def refuse_dora(config: PeftConfig, what: str) -> None:
    """Refuse DoRA on a sharded base: it reads the norms of matrices of which a rank has a part.

    Raises:
        ValueError: `config` has `use_dora`.
    """
    if getattr(config, "use_dora", False):
        raise ValueError(
            f"{what} is DoRA, which needs the norms of intact matrices, and the base is sharded "
            "across ranks. Set use_dora: false, or start without FSDP and ZeRO-3 (ddp, or one "
            "process with load_in_4bit: true)."
        )


@contextmanager
def _naming_sizes(folder: str | Path) -> Iterator[None]:
    """Name the two shapes, and what to do, where a tensor of the adapter has another shape."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"size mismatch for (\S+): .*?\[(.*?)\].*?\[(.*?)\]", str(error))
        if found is None:
            raise
        key, given, wanted = found.groups()
        raise ValueError(
            f"the adapter {folder} does not fit: {key} has the shape [{given}] in the adapter, and "
            f"[{wanted}] in the model. If the vocabulary was grown for the adapter, give a base "
            f"saved after resize_token_embeddings({given.partition(',')[0]}), or the merged model. "
            "Otherwise give the base and the configuration that it was trained with."
        ) from error


def _loaded(
    model: PreTrainedModel | PeftModel, folder: str | Path, name: str, trainable: bool
) -> PeftModel:
    options = {"adapter_name": name, "is_trainable": trainable}
    with warnings.catch_warnings():  # what is missing or changes the base is an error
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        warnings.filterwarnings("ignore", ".*changes the base weights")
        if not isinstance(model, PeftModel):
            model = PeftModel.from_pretrained(model, str(folder), **options)
        report = model.load_adapter(str(folder), **options)
    missing = {key for key in report.missing_keys if belongs_to(key, name)}
    refuse_incomplete(
        folder, {"missing_keys": missing, "unexpected_keys": set(report.unexpected_keys)}
    )
    own = {key: weight for key, weight in model.named_parameters() if belongs_to(key, name)}
    refuse_non_finite(f"the adapter {folder}: its weights", own)
    return model
