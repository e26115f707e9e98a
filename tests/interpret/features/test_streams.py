"""Corpus and streams: which tokens are read, and their states against complete forwards."""

import json

import datasets
import pytest
import torch
from peft import get_peft_model
from tiny_models import EOS, lora, randomize, tiny_model, tiny_pairs, tiny_tokenizer
from tokenizers_for_tests import llama_tokenizer

from rahf.interpret.features.corpus import (
    corpus_of_pairs,
    corpus_of_texts,
    split_documents,
    texts_of,
)
from rahf.interpret.features.streams import BlockReader, StateReader, ordinary, schedule

TEXTS = [" ".join(f"w{2 + (5 * text + n) % 37}" for n in range(3 + 4 * text)) for text in range(6)]


def corpus(length=8, **options):
    return corpus_of_texts(TEXTS, tiny_tokenizer(), tokens=1000, length=length, **options)


def pieces_of(corpus):
    return [corpus.piece(index) for index in range(corpus.pieces)]


def adapted(architecture="llama"):
    model = get_peft_model(
        tiny_model(architecture), lora(fan_in_fan_out=architecture == "gpt2")
    ).eval()
    randomize(model, "default", 1)
    return model


def whole_states(model, pieces, layers):
    """Return the states of one piece at a time, by the model's own record of hidden states."""
    found = []
    for ids, read in pieces:
        with torch.no_grad():
            output = model(torch.tensor([ids]), output_hidden_states=True)
        found.append(torch.stack([output.hidden_states[layer + 1][0, read] for layer in layers]))
    return torch.cat(found, dim=1)


def test_long_texts_are_cut_and_first_and_special_tokens_are_context_only():
    texts = ["w2 w3 w4 w5 w6 w7 w8", "w9", "[EOS] w3 [EOS] w4", ""]
    found = corpus_of_texts(texts, tiny_tokenizer(), tokens=1000, length=3)
    assert [(ids, read.tolist()) for ids, read in pieces_of(found)] == [
        ([2, 3, 4], [False, True, True]),
        ([5, 6, 7], [False, True, True]),
        ([EOS, 3, EOS], [False, True, False]),
    ]
    assert found.documents.tolist() == [0, 0, 2]
    assert found.counts().tolist() == [2, 2, 1]
    every = corpus_of_texts(texts, tiny_tokenizer(), tokens=1000, length=3, every_token=True)
    assert every.read.all()
    assert every.counts().tolist() == [3, 3, 1, 1, 3, 1]


def test_every_piece_begins_as_the_tokenizer_begins_a_text():
    tokenizer = llama_tokenizer()
    found = corpus_of_texts(["I loved it, the ending was dull."], tokenizer, tokens=99, length=6)
    assert found.pieces > 1
    for ids, read in pieces_of(found):
        assert ids[0] == tokenizer.bos_token_id
        assert not read[0]
        assert read[1:].all()


def test_of_pairs_the_responses_are_read_without_their_end():
    pairs = tiny_pairs(3)
    found = corpus_of_pairs(pairs, tiny_tokenizer(), tokens=1000)
    for index, (ids, read) in enumerate(pieces_of(found)):
        pair, side = pairs[index // 2], ("chosen_ids", "rejected_ids")[index % 2]
        assert ids == pair["prompt_ids"] + pair[side]
        assert torch.tensor(ids)[read].tolist() == pair[side][:-1]
    assert found.documents.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_states_are_those_of_each_piece_alone_at_any_batch_size(architecture, batch_size):
    model, pieces = tiny_model(architecture), pieces_of(corpus())
    reader = StateReader(model, (0, 2), "residual", "states", EOS, batch_size)
    expected = whole_states(model, pieces, (0, 2))
    assert torch.allclose(reader(pieces), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_mlp_outputs_are_those_of_a_complete_forward(architecture):
    model, pieces = tiny_model(architecture), pieces_of(corpus())
    expected, outputs = [], []
    [mlp] = [part for name, part in model.named_modules() if name.endswith(".1.mlp")]
    handle = mlp.register_forward_hook(lambda *given: outputs.append(given[2]))
    for ids, read in pieces:
        with torch.no_grad():
            model(torch.tensor([ids]))
        expected.append(outputs.pop()[0, read])
    handle.remove()
    reader = StateReader(model, (1,), "mlp", "states", EOS, 4)
    assert torch.allclose(reader(pieces)[0], torch.cat(expected), atol=1e-4)
    assert len(model.get_decoder().layers if architecture != "gpt2" else model.transformer.h) == 4


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_differences_are_aligned_minus_base_and_the_base_is_the_adapter_off(architecture):
    model, pieces = adapted(architecture), pieces_of(corpus())
    layers = (1, 3)
    aligned = StateReader(model, layers, "residual", "states", EOS)(pieces)
    differences = StateReader(model, layers, "residual", "differences", EOS)(pieces)
    base = StateReader(tiny_model(architecture), layers, "residual", "states", EOS)(pieces)
    assert torch.allclose(differences, aligned - base, atol=1e-5)
    assert differences.abs().max() > 0.1
    assert torch.allclose(whole_states(model, pieces, (1,))[0], aligned[0], atol=1e-5)


def test_blocks_hold_every_piece_once_an_epoch_in_an_order_of_the_seed():
    found = corpus()
    pieces = torch.arange(found.pieces)
    total = int(found.counts().sum())
    plan = schedule(found, pieces, total, seed=3, block_tokens=20)
    assert len(plan.blocks) > 2
    assert torch.cat(plan.blocks).sort().values.tolist() == pieces.tolist()
    assert sum(plan.tokens) == total
    again = schedule(found, pieces, 2 * total + 1, seed=3, block_tokens=20)
    assert sum(again.tokens) > 2 * total
    assert torch.cat(again.blocks).bincount().min() == 2
    states = torch.arange(2 * plan.tokens[0]).view(2, -1, 1).float()
    batches = list(plan.batches(0, states, 7))
    joined = torch.cat(batches, 1)
    assert [batch.shape[1] for batch in batches] != [plan.tokens[0]]
    assert joined[0, :, 0].sort().values.tolist() == list(range(plan.tokens[0]))
    assert (joined[1] - joined[0]).unique().tolist() == [plan.tokens[0]]


def test_held_out_documents_share_nothing_with_the_others():
    found = corpus()
    train, held_out = split_documents(found, 10, seed=0)
    documents = found.documents
    assert not set(documents[train].tolist()) & set(documents[held_out].tolist())
    assert len(train) + len(held_out) == found.pieces
    assert len(held_out) > 0
    with pytest.raises(ValueError, match="one document"):
        split_documents(corpus_of_texts(TEXTS[:1], tiny_tokenizer(), tokens=9, length=8), 10, 0)


def test_texts_come_from_plain_files_records_and_data_sets(tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("line one\n" * 2000 + "last")
    texts = list(texts_of(str(plain)))
    assert "".join(texts) == plain.read_text()
    assert len(texts) == 2
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    assert list(texts_of(str(records), column="body")) == TEXTS
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    assert list(texts_of(str(tmp_path / "saved"))) == TEXTS
    datasets.Dataset.from_dict({"text": TEXTS}).to_parquet(str(tmp_path / "texts.parquet"))
    assert list(texts_of(str(tmp_path / "texts.parquet"))) == TEXTS
    with pytest.raises(ValueError, match="no text in the column 'text'; it has: body"):
        list(texts_of(str(records)))
    (tmp_path / "bytes.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        list(texts_of(str(tmp_path / "bytes.bin")))


@pytest.mark.parametrize("texts", [[], [""], ["w3"], ["[EOS] [EOS] [EOS]"]])
def test_an_empty_corpus_is_an_error(texts):
    with pytest.raises(ValueError, match="no token to read"):
        corpus_of_texts(texts, tiny_tokenizer(), tokens=9, length=8)


def test_states_that_are_not_finite_are_an_error():
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight.data.fill_(torch.nan)
    reader = StateReader(model, (0, 1), "residual", "states", EOS)
    with pytest.raises(ValueError, match="layer 1 are not finite"):
        reader(pieces_of(corpus()))


def test_a_token_is_massive_where_its_state_in_any_layer_is():
    states = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    states[0, 3] *= 100
    states[1, 7] *= 100
    assert (~ordinary(states)).nonzero().flatten().tolist() == [3, 7]
    assert ordinary(states * torch.tensor([1.0, 50.0])[:, None, None]).sum() == 38  # by layer
    assert ordinary(torch.zeros(1, 4, 8)).all()


@pytest.mark.parametrize(("block_tokens", "once"), [(60, True), (20, False)])
def test_a_text_that_comes_again_and_fits_a_block_is_read_once(block_tokens, once):
    found, given, told = corpus(), [], []

    class Counted(StateReader):
        def __call__(self, pieces, told=id):
            given.extend(pieces)
            return super().__call__(pieces, told)

    reader = StateReader(tiny_model(), (0, 2), "residual", "states", EOS, 4)
    plan = schedule(found, torch.arange(2, found.pieces), 200, seed=0, block_tokens=block_tokens)
    blocks = BlockReader(Counted(*reader), plan)
    assert blocks.once == once
    states = [blocks(number, told.append) for number in range(len(plan.blocks))]
    for block, read, tokens in zip(plan.blocks, states, plan.tokens, strict=True):
        expected = reader([found.piece(index) for index in block.tolist()])
        assert read.shape[1] == tokens
        torch.testing.assert_close(read, expected, atol=1e-4, rtol=1e-4)
    assert sum(told) == sum(plan.tokens)
    assert sum(int(piece.read.sum()) for piece in given) == blocks.tokens
    assert (blocks.tokens < sum(plan.tokens)) == once
    assert torch.equal(BlockReader(reader, plan)(2), states[2])  # a training that resumes there
