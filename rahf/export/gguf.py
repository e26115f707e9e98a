"""Directions as a GGUF control vector, the file that llama.cpp adds to its layers, and such a file
of others as directions. Knows no model.

Layers are numbered as in llama.cpp (`common_control_vector_load`, `llama_adapter_cvec`):
`direction.N` is added to the output of block N, counted from 0, which is our layer N; there is none
for block 0.
"""

import re
from pathlib import Path
from typing import Any

import torch

from rahf.artifacts import staging_of
from rahf.directions.vectors import Directions

ARCHITECTURE = "controlvector"

LLAMA_CPP_NAMES = {"mistral": "llama", "gpt_neox": "gptneox", "gemma3_text": "gemma3"}
"""Names of architectures in llama.cpp, where they are not those of transformers."""


def that_llama_cpp_steers(directions: Directions) -> Directions:
    """Return the directions without block 0.

    Raises:
        ValueError: they hold no other block.
    """
    kept = tuple(layer for layer in directions.layers if layer > 0)
    if not kept:
        raise ValueError(
            "the directions hold layer 0 only, for which llama.cpp has no control vector; fit "
            "others, or steer in Python."
        )
    return directions.only(kept)


def write_control_vector(directions: Directions, path: Path, model_hint: str) -> None:
    """Write the vectors as float32.

    Args:
        directions: of layers `that_llama_cpp_steers`.
        model_hint: the model's type, such as `llama`; informative, not checked by llama.cpp.

    Raises:
        ValueError: the package gguf is missing.
    """
    gguf = gguf_package()
    staging = staging_of(path)
    writer = gguf.GGUFWriter(staging, ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", LLAMA_CPP_NAMES.get(model_hint, model_hint))
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions.layers))
    for layer, vector in zip(directions.layers, directions.vectors, strict=True):
        writer.add_tensor(f"direction.{layer}", vector.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    staging.replace(path)


def read_control_vector(path: Path) -> Directions:
    """Return the vectors of a file as they are; `increments` of the metadata is true.

    llama.cpp adds them in every layer, and what is added stays in the residual stream.

    Raises:
        ValueError: the package gguf is missing; the file is damaged, or is no control vector.
    """
    gguf = gguf_package()
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no GGUF file ({error})") from None
    named = reader.fields.get("general.architecture")
    if (architecture := named and named.contents()) != ARCHITECTURE:
        raise ValueError(
            f"{path} is of the architecture {architecture!r}, not {ARCHITECTURE!r}: a control "
            "vector belongs here, and a model is given as model_name_or_path."
        )
    vectors = {_layer_of(tensor.name, path): _vector(tensor, path) for tensor in reader.tensors}
    widths = {len(vector) for vector in vectors.values()}
    if len(widths) != 1:
        raise ValueError(
            f"{path}: a control vector holds tensors direction.N of one width, and this file holds "
            f"{f'widths {sorted(widths)}' if widths else 'no tensor'}."
        )
    layers, hint = tuple(sorted(vectors)), reader.fields.get(f"{ARCHITECTURE}.model_hint")
    made_with = {"fit": f"control vector {path.name}", "increments": "true"}
    if hint is not None and isinstance(named := hint.contents(), str):
        theirs = {name: own for own, name in LLAMA_CPP_NAMES.items() if own != "mistral"}
        made_with["model_type"] = theirs.get(named, named)
    try:
        found = Directions(layers, torch.stack([vectors[layer] for layer in layers]), made_with)
        found.check_moving()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return found


def _layer_of(name: str, path: Path) -> int:
    found = re.fullmatch(r"direction\.([1-9]\d{0,5})", name)
    if found is None:
        raise ValueError(
            f"{path} holds a tensor {name!r}: in a control vector each is direction.N, N being a "
            "block from 1."
        )
    return int(found[1])


def _vector(tensor: Any, path: Path) -> torch.Tensor:
    if tensor.tensor_type.name != "F32" or len(tensor.shape) != 1:
        raise ValueError(
            f"{path}: {tensor.name} is {tensor.tensor_type.name} of shape {list(tensor.shape)}; "
            "llama.cpp reads vectors in F32 only, and so does rahf."
        )
    return torch.tensor(tensor.data)  # a copy: the file is only mapped into memory


def gguf_package():
    """Return the package that reads and writes the format.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise ValueError(
            "a GGUF control vector needs the package gguf: pip install 'rahf[gguf]', or choose "
            "another format (--formats safetensors)."
        ) from None
    return gguf
