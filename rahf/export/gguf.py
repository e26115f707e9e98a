"""Directions as a GGUF control vector, the file that llama.cpp adds to its layers. Knows no model.

Layers are numbered as in llama.cpp (`common_control_vector_load`, `llama_adapter_cvec`):
`direction.N` is added to the output of block N, counted from 0, which is our layer N; there is none
for block 0.
"""

from pathlib import Path

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
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.partial")
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


def gguf_package():
    """Return the package that writes the format.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise ValueError(
            "a control vector needs the package gguf: pip install 'rahf[gguf]', or omit gguf "
            "from --formats."
        ) from None
    return gguf
