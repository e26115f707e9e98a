"""Read a finished adapter from its folder and put it on a model, beside those it has.

The base and the other adapters stay as they are. Knows peft; knows no loss and no data.
"""

import warnings
from pathlib import Path

from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers import PreTrainedModel

from rahf.distributed.sharding import refuse_incomplete
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
            `model`; the adapter changes the base.
    """
    files = [Path(folder) / file for file in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)]
    if Path(folder).is_dir() and not any(file.exists() for file in files):
        raise ValueError(
            f"{folder} holds an adapter_config.json but no {files[0].name}; give the folder of a "
            "finished training."
        )
    with keeping_base(model, name, f"the adapter {folder}"):
        return _loaded(model, folder, name, trainable)


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
    for key, parameter in model.named_parameters():
        if belongs_to(key, name) and not parameter.isfinite().all():
            raise ValueError(f"the adapter {folder}: {key} has NaN or infinity; train it again.")
    return model
