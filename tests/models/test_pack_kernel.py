"""A pack in one kernel gives what its rows give one by one; what cannot is left to the rows.

The kernel is that of a GPU. Here torch computes it uncompiled, all scores in memory.
"""

import logging
from types import SimpleNamespace

import pytest
import torch
from tiny_models import EOS, tiny_model
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel

from rahf.data.rows import packed_rows, sequence_rows
from rahf.models import pack_kernel, packed_attention
from rahf.models.likelihood import likelihood, model_inputs
from rahf.models.pack_kernel import BLOCK, attention_in_one_kernel, mask_of, seen_blocks
from rahf.models.packed_attention import kernel_only_on, takes_kernel
from rahf.models.packing import use_packed_attention
from rahf.models.row_attention import attention_row_by_row

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    # torch's own tracing, which hides the warning where it is none
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

LONG = (((0, 150),), ((0, 20), (150, 300)), ((0, 20), (150, 160), (300, 330)), ((330, 331),))
"""Rows of which two share the beginning of the first, and the third that of the second as well."""

SPANS = [LONG, (((0, 300),), ((300, 700),)), (((0, 140),),)]


@pytest.fixture
def gradients_on_a_cpu(monkeypatch):
    """Let torch compute gradients of its kernel on a CPU, which it can, and refuses."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)


@pytest.fixture(autouse=True)
def nothing_compared(monkeypatch):
    monkeypatch.setattr(packed_attention, "_holds", {})


def tokens_seen(spans, window):
    """Return [tokens, tokens]: which tokens each one sees, row by row."""
    seen = torch.zeros(spans[-1][-1][1], spans[-1][-1][1], dtype=torch.bool)
    for row in spans:
        places = [place for start, stop in row for place in range(start, stop)]
        for index, place in enumerate(places):
            if place >= row[-1][0]:
                first = 0 if window is None else max(0, index + 1 - window)
                seen[place, places[first : index + 1]] = True
    return seen


@pytest.mark.parametrize("window", [None, 1, 30, 129, 200])
@pytest.mark.parametrize("spans", SPANS)
def test_the_mask_is_that_of_the_rows_and_no_block_with_a_seen_token_is_skipped(spans, window):
    expected = tokens_seen(spans, window)
    places = torch.arange(len(expected))
    mask = mask_of(spans, window, torch.device("cpu"))
    found = mask.mask_mod(0, 0, places[:, None], places[None])
    assert torch.equal(found, expected)
    some, whole = seen_blocks(spans, window)
    for line, query in enumerate(expected.split(BLOCK)):
        for column, square in enumerate(query.split(BLOCK, dim=1)):
            assert some[line, column] or not square.any()
            assert not whole[line, column] or (square.all() and square.numel() == BLOCK**2)
            if window is None:  # and none is computed for nothing
                assert some[line, column] == square.any()
                assert whole[line, column] == (square.numel() == BLOCK**2 and square.all())
    assert torch.equal(mask.to_dense()[0, 0].bool(), some)


def tensors(spans, key_heads=2):
    torch.manual_seed(0)
    tokens = spans[-1][-1][1]
    made = [torch.randn(1, heads, tokens, 16) for heads in (4, key_heads, key_heads)]
    return [tensor.requires_grad_() for tensor in made]


MODULE = SimpleNamespace(num_key_value_groups=2, is_causal=True)


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("spans", SPANS[:2])
def test_one_kernel_has_outputs_and_gradients_of_the_rows(
    gradients_on_a_cpu, spans, key_heads, window
):
    given = tensors(spans, key_heads)
    weight = torch.randn(1, given[0].shape[2], 4, 16)
    by_rows = attention_row_by_row(MODULE, *given, spans, window, scaling=0.3)
    in_one = attention_in_one_kernel(*given, spans, window, scaling=0.3)
    assert torch.allclose(in_one, by_rows, atol=1e-5)
    for found, expected in zip(
        *(torch.autograd.grad((output * weight).sum(), given) for output in (in_one, by_rows)),
        strict=True,
    ):
        assert torch.allclose(found, expected, atol=1e-4)


def test_under_autocast_the_kernel_computes_in_16_bits():
    given = [tensor.detach() for tensor in tensors(LONG)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_in_one_kernel(*given, LONG)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), attention_in_one_kernel(*given, LONG), atol=0.05)


def rows_of_several_blocks():
    """Return prompts and responses: six rows of up to 50 tokens, the first three begin alike."""
    common = [2 + token % 30 for token in range(30)]
    prompts = [[*common, 3], [*common, 4, 5], [*common, 6], *([7 + row] * 40 for row in range(3))]
    return prompts, [[5 + row, 9, *range(2, 9), EOS] for row in range(6)]


def kernel_calls(monkeypatch, change=lambda **given: given):
    """Count the calls of the kernel, with the arguments changed."""
    calls = []

    def counted(query, key, value, spans, window=None, scaling=None):
        calls.append(query.shape[2])
        given = change(spans=spans, window=window, scaling=scaling)
        return attention_in_one_kernel(query, key, value, **given)

    monkeypatch.setattr(packed_attention, "attention_in_one_kernel", counted)
    return calls


@pytest.mark.parametrize("checkpointing", [None, False, True])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_a_model_has_the_likelihoods_and_gradients_of_padded_rows(
    gradients_on_a_cpu, monkeypatch, caplog, architecture, checkpointing
):
    calls, results = kernel_calls(monkeypatch), []
    prompts, responses = rows_of_several_blocks()
    for rows in (sequence_rows(prompts, responses, EOS), packed_rows(prompts, responses)):
        with kernel_only_on("cpu"):
            model = tiny_model(architecture).train()
            assert use_packed_attention(model)
            if checkpointing is not None:
                model.activation_checkpointing_enable({"use_reentrant": checkpointing})
                model.enable_input_require_grads()
            means = likelihood(model, rows).means()
            means.sum().backward()
        results.append((means, model.get_input_embeddings().weight.grad))
    assert calls
    assert not [line for line in caplog.records if line.name.startswith("rahf")]
    (padded, padded_gradient), (packed, packed_gradient) = results
    assert torch.allclose(packed, padded, atol=1e-5)
    assert torch.allclose(packed_gradient, padded_gradient, rtol=1e-3, atol=1e-4)


def test_elsewhere_than_on_a_gpu_packs_are_attended_row_by_row(monkeypatch):
    calls = kernel_calls(monkeypatch)
    model = tiny_model()
    assert use_packed_attention(model)
    model(**model_inputs(packed_rows(*rows_of_several_blocks())))
    assert calls == []
    assert packed_attention.KERNEL_DEVICES == ["cuda"]


def failing(**_):
    raise NotImplementedError("no kernel for this\nand more")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda **given: given | {"window": 3}, "its output differs from that of single rows"),
        (lambda **given: given | {"scaling": 5.0}, "its output differs"),
        (failing, "it fails (NotImplementedError: no kernel for this)"),
    ],
)
def test_a_kernel_that_does_not_hold_is_left_and_said_once(
    gradients_on_a_cpu, monkeypatch, caplog, change, reason
):
    calls = kernel_calls(monkeypatch, change)
    rows = packed_rows(*rows_of_several_blocks())
    model = tiny_model()
    assert use_packed_attention(model)
    expected = model(**model_inputs(rows)).logits
    with kernel_only_on("cpu"), caplog.at_level(logging.WARNING):
        found = [model(**model_inputs(rows)).logits for _ in range(2)]
    assert len(calls) == 1
    assert all(torch.equal(logits, expected) for logits in found)
    [record] = [line for line in caplog.records if line.name.startswith("rahf")]
    assert "runs row by row, not in one kernel" in record.getMessage()
    assert reason in record.getMessage()


def test_a_gradient_that_does_not_hold_is_noticed(gradients_on_a_cpu):
    def without_keys(query, key, value):
        return attention_row_by_row(MODULE, query, key.detach(), value, LONG) + 0 * key.sum()

    def plainly(*given):
        return attention_row_by_row(MODULE, *given, LONG)

    given = tensors(LONG)
    assert pack_kernel.what_differs(plainly, plainly, given) is None
    assert "gradient of the key" in pack_kernel.what_differs(without_keys, plainly, given)


@pytest.mark.parametrize(
    ("options", "spans", "backends", "takes"),
    [
        ({}, LONG, list(SDPBackend.__members__.values())[1:4], True),
        ({"dropout": 0.1}, LONG, None, False),
        ({"is_causal": False}, LONG, None, False),
        ({}, (((0, BLOCK),),), None, False),
        ({}, LONG, [SDPBackend.MATH], False),  # as for a second derivative
    ],
)
def test_the_rows_keep_what_the_kernel_has_not(gradients_on_a_cpu, options, spans, backends, takes):
    given = tensors(spans)
    backends = backends or [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with kernel_only_on("cpu"), sdpa_kernel(backends):
        assert takes_kernel(MODULE, *given, spans, None, options) == takes
    assert not takes_kernel(MODULE, *given, spans, None, options)


def test_the_kernel_is_compiled_once_for_all_lengths(monkeypatch):
    compiled = []

    def backend(graph, inputs):
        compiled.append(len(inputs))
        return graph.forward

    attend = torch.compile(
        flex_attention.flex_attention, dynamic=True, fullgraph=True, backend=backend
    )
    monkeypatch.setattr(pack_kernel, "flex_attention", attend)
    for rows in ([200, 301], [150], [128, 128], [90, 80, 70, 333], [512], [131, 500]):
        ends = torch.tensor(rows).cumsum(0).tolist()
        spans = tuple(((end - row, end),) for row, end in zip(rows, ends, strict=True))
        given = [tensor.detach() for tensor in tensors(spans)]
        found = attention_in_one_kernel(*given, spans, scaling=0.3)
        expected = attention_row_by_row(MODULE, *given, spans, scaling=0.3)
        assert torch.allclose(found, expected, atol=1e-5)
    assert len(compiled) <= 2
