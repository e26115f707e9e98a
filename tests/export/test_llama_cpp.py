"""What `rahf export` writes for llama.cpp, run in llama.cpp: the same logits as our own steering.

Needs llama-cpp-python (0.3.36 was used), which has to be compiled: left out where it is missing.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from gguf_models import read_control_vector, shaken, write_model
from tiny_models import ARCHITECTURES, D_MODEL, DEPTH, VOCABULARY, tiny_model
from torch import Tensor

from rahf.cli import main
from rahf.directions.steering import steer
from rahf.directions.vectors import Directions

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

TEXT = [2, 17, 5, 30, 8, 8, 21, 3, 39, 12]
GGML_TYPE_F32 = 0
ALL_LAYERS = (1, DEPTH)  # llama.cpp's default, both ends included


@contextmanager
def running(path: Path) -> Iterator[ctypes.c_void_p]:
    """Yield a context of llama.cpp in float32 throughout, one thread."""
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.use_mmap = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    assert model
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = 64
    options.n_threads = options.n_threads_batch = 1
    options.type_k = options.type_v = GGML_TYPE_F32
    options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, options)
    assert context
    try:
        yield context
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def logits_of(context: ctypes.c_void_p, text: list[int]) -> Tensor:
    """Return [seq, vocabulary], the text read in one call."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    batch = llama_cpp.llama_batch_init(len(text), 0, 1)
    batch.n_tokens = len(text)
    for place, token in enumerate(text):
        batch.token[place] = token
        batch.pos[place] = place
        batch.n_seq_id[place] = 1
        batch.seq_id[place][0] = 0
        batch.logits[place] = 1
    assert llama_cpp.llama_decode(context, batch) == 0
    rows = [llama_cpp.llama_get_logits_ith(context, place) for place in range(len(text))]
    logits = torch.tensor([row[:VOCABULARY] for row in rows])
    llama_cpp.llama_batch_free(batch)
    return logits


def apply(
    context: ctypes.c_void_p, path: Path, scale: float = 1.0, layers: tuple[int, int] = ALL_LAYERS
) -> None:
    """Apply a vector as llama.cpp's own programs do under --control-vector-scaled and
    --control-vector-layer-range: direction.N at row N - 1, zeros elsewhere.
    """
    vectors = read_control_vector(path)
    rows = torch.zeros(max(vectors.layers), D_MODEL)
    rows[[layer - 1 for layer in vectors.layers]] = scale * vectors.vectors
    data = (ctypes.c_float * rows.numel())(*rows.flatten().tolist())
    assert llama_cpp.llama_set_adapter_cvec(context, data, len(data), D_MODEL, *layers) == 0


def ours(model, directions: Directions, alpha: float) -> Tensor:
    with torch.no_grad(), steer(model, directions, alpha):
        return model(input_ids=torch.tensor([TEXT])).logits[0]


def directions_of(layers: tuple[int, ...]) -> Directions:
    vectors = torch.randn(len(layers), D_MODEL, generator=torch.Generator().manual_seed(0))
    return Directions(layers, vectors)


def exported(directions: Directions, folder: Path, *options: str) -> Path:
    directions.save(folder / "directions")
    command = ["export", str(folder / "directions"), "--output", str(folder / "out")]
    assert main([*command, *options]) == 0
    return folder / "out" / "control_vector.gguf"


def run_by_both(architecture: str, folder: Path):
    """Return a model in transformers, and the file of it that llama.cpp runs."""
    model = shaken(tiny_model(architecture))
    write_model(model, folder / "model.gguf")
    return model, running(folder / "model.gguf")


# Mistral is a Llama in llama.cpp, without the window of its attention.
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "mistral"])
def test_llama_cpp_steers_as_we_do(architecture, tmp_path):
    model, context = run_by_both(architecture, tmp_path)
    directions = directions_of((1, 2, 3))
    path = exported(directions, tmp_path, "--alpha", "2")
    # llama.cpp reads GELU from a table in half precision; the vectors change a logit by 1 to 5.
    tolerance = 1e-5 if architecture in ("llama", "qwen2", "qwen3") else 0.02

    def check(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)

    with context as running_context:
        plain = ours(model, directions, 0.0)
        check(logits_of(running_context, TEXT), plain)
        apply(running_context, path)
        steered = logits_of(running_context, TEXT)
        check(steered, ours(model, directions, 2.0))
        assert (steered - plain).abs().max() > 1
        apply(running_context, path, scale=-0.5, layers=(2, 3))
        check(logits_of(running_context, TEXT), ours(model, directions.only((2, 3)), -1.0))


def test_increments_without_block_0_still_shift_each_layer_by_its_vector(tmp_path):
    model, context = run_by_both("llama", tmp_path)
    directions = directions_of((0, 1, 2, 3))
    path = exported(directions, tmp_path, "--increments")
    with context as running_context:
        apply(running_context, path)
        found = logits_of(running_context, TEXT)
    expected = ours(model, directions.only((1, 2, 3)).increments(), 1.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
