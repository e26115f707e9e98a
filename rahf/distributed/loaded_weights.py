"""Weights as they were loaded: all of them, as numbers, and finite; or an error that names them.

Every model of `from_pretrained` passes here. Knows models; knows neither launches nor adapters.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

STORED = ("F64", "F32", "F16", "BF16")
"""Types of a safetensors file that hold a weight itself; all others need a scale."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OF_DTYPE = dict(zip(FLOATS, STORED, strict=True))
"""The same types in a `.bin` file."""


def check_loaded(
    name: str | Path,
    model: PreTrainedModel,
    report: Mapping[str, set[str]],
    depth: int | None = None,
) -> None:
    """Refuse a model that is not what its files should hold: `refuse_incomplete`, `refuse_scaled`
    and `refuse_non_finite`.

    Args:
        report: `missing_keys` and `unexpected_keys` of loading.
        depth: the number of decoder blocks that were wanted; those above it may be left over.

    Raises:
        ValueError: any of the three.
    """
    refuse_incomplete(name, report, depth)
    refuse_scaled(name, model)
    refuse_non_finite(f"the weights in {name}", dict(_weights(model)))


def refuse_incomplete(
    name: str | Path, report: Mapping[str, set[str]], depth: int | None = None
) -> None:
    """Refuse weights whose names are not those of the model: what is missing would be random.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    missing, unexpected = report["missing_keys"], report["unexpected_keys"]
    if depth is not None:
        numbers = {key: re.search(r"\.(\d+)\.", key) for key in unexpected}
        unexpected = {key for key, found in numbers.items() if not found or int(found[1]) < depth}
    problems = [
        f"{len(keys)} {what} ({_first(keys)})"
        for keys, what in ((missing, "tensors are missing"), (unexpected, "tensors fit no module"))
        if keys
    ]
    if problems:
        raise ValueError(
            f"the weights in {name} are not those of its configuration: {'; '.join(problems)}. "
            "Give the complete folder as save_pretrained wrote it, with the base it was made for."
        )


def refuse_scaled(name: str | Path, model: PreTrainedModel) -> None:
    """Refuse weights stored as whole numbers or in 8 bits: they load without their scale.

    A model with a quantization_config is loaded by its quantiser, which knows the scale.

    Raises:
        ValueError: a parameter is stored as another type than `STORED`.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        return
    known, prefix = dict(model.named_parameters()), f"{model.base_model_prefix}."
    wrong = {
        key: kind
        for key, kind in _stored_types(name, model).items()
        if kind not in STORED
        and not known.keys().isdisjoint((key, prefix + key, key.removeprefix(prefix)))
    }
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights in {name} are stored as {', '.join(sorted({*wrong.values()}))} "
            f"({_first(wrong)}), and its config.json has no quantization_config, so that their "
            "scale is not known. Give weights in float32, bfloat16 or float16, or the folder as "
            "its quantiser wrote it."
        )


def _stored_types(name: str | Path, model: PreTrainedModel) -> dict[str, str]:
    """Return {tensor: type} from the headers of the files that transformers has read."""
    folder = Path(name)
    if not folder.is_dir():
        found = cached_file(
            str(name),
            CONFIG_NAME,
            revision=getattr(model.config, "_commit_hash", None),  # only of the Hub's
            local_files_only=True,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_missing_entries=False,
        )
        folder = Path(found or name).parent
    for single, index in (
        (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME),
        (WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
    ):
        files = [folder / single]
        if not files[0].is_file() and (folder / index).is_file():
            listed = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
            files = [folder / file for file in sorted(set(listed.values()))]
        types = (_types_in(file) for file in files if file.is_file())
        if found := {key: kind for each in types for key, kind in each.items()}:
            return found
    return {}


def _types_in(path: Path) -> dict[str, str]:
    """Return the type of each tensor in a file, without its values."""
    if path.suffix == ".bin":
        loaded = torch.load(path, map_location="meta", weights_only=True)
        tensors = {key: each for key, each in loaded.items() if isinstance(each, Tensor)}
        return {key: OF_DTYPE.get(each.dtype, str(each.dtype)) for key, each in tensors.items()}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {key: entry["dtype"] for key, entry in header.items() if key != "__metadata__"}


def refuse_non_finite(what: str, weights: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity, also in this rank's shard of a weight.

    Attention and averages may hide them: figures would come out that mean nothing. Reads each
    tensor once and copies none.

    Args:
        what: names the weights in the error.

    Raises:
        ValueError: a weight is not finite.
    """
    wrong = {key: weight.dtype for key, weight in weights.items() if not _is_finite(weight)}
    if not wrong:
        return
    cure = "fetch or write them again, or train them anew at a lower learning rate"
    if torch.float16 in wrong.values():
        cure = f"load them as float32 or bfloat16 (float16 ends at 65,504), or {cure}"
    raise ValueError(
        f"{what} hold NaN or infinity in {len(wrong)} of {len(weights)} tensors ({_first(wrong)}): "
        f"{cure}."
    )


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters, and the scales of those that a quantiser holds in few bits."""
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "Params4bit":  # of bitsandbytes
            state = parameter.quant_state
            # Scales that are quantised themselves are known by their mean and their own scales.
            yield (
                name,
                torch.stack((state.offset, state.state2.absmax.max()))
                if state.nested
                else state.absmax,
            )
        elif type(parameter).__name__ == "Int8Params" and parameter.SCB is not None:
            yield name, parameter.SCB
        else:
            yield name, parameter


@torch.no_grad()
def _is_finite(weight: Tensor) -> bool:
    # A parameter under ZeRO-3 is empty; its shard is beside it.
    weight = getattr(weight, "ds_tensor", weight)
    values = weight.to_local() if isinstance(weight, DTensor) else weight
    if values.is_meta or not values.is_floating_point() or not values.numel():
        return True
    if values.element_size() == 1:  # float8, which has no minimum
        values = values.to(torch.bfloat16)
    return all(bound.isfinite().item() for bound in torch.aminmax(values))


def _first(names: Collection[str]) -> str:
    return f"{', '.join(sorted(names)[:4])}{', ...' if len(names) > 4 else ''}"
