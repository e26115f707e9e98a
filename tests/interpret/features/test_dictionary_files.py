"""Dictionaries on disk: ours, those of eai-sparsify and of sae-lens, and what cannot be read."""

import json
import sys

import pytest
import torch
from planted_dictionaries import random_dictionary
from safetensors.torch import load_file, save_file
from test_topk import ORIGIN, weights
from tiny_models import tiny_model

from rahf.interpret.features.bases import check_base
from rahf.interpret.features.checkpoints import load_dictionary, save_dictionary
from rahf.interpret.features.dictionary import Origin
from rahf.interpret.features.topk import TopKDictionary

HIDDEN = torch.randn(40, 6, generator=torch.Generator().manual_seed(5))


def densified(codes):
    whole = torch.zeros(codes.tokens, codes.latents)
    whole[codes.owners(), codes.indices.long()] = codes.values
    return whole


@pytest.mark.parametrize("signed", [False, True])
def test_a_dictionary_is_read_back_as_it_was(tmp_path, signed):
    origin = Origin("tiny", "ab" * 8, 2, "mlp", "differences", 7)
    saved = TopKDictionary(origin, weights(), 4, signed)
    save_dictionary(saved, tmp_path)
    found = load_dictionary(tmp_path)
    assert found.origin == origin
    assert (found.d_model, found.latents) == (6, 20)
    assert torch.equal(found.decode(found.encode(HIDDEN)), saved.decode(saved.encode(HIDDEN)))
    other = Origin("other", None, 0, "residual")
    assert load_dictionary(tmp_path, origin=other).origin == other


def sparsify_checkpoint(folder, **settings):
    """Write what eai-sparsify writes for a folder of its hookpoint."""
    folder.mkdir(exist_ok=True)
    given = weights()
    names = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    save_file(dict(zip(names, given, strict=True)), folder / "sae.safetensors")
    usual = {"activation": "topk", "k": 4, "num_latents": 20, "d_in": 6, "transcode": False}
    (folder / "cfg.json").write_text(json.dumps(usual | settings))


def test_a_checkpoint_of_sparsify_gives_its_own_reconstruction(tmp_path):
    for name, layer, site in (("layers.3", 3, "residual"), ("h.11.mlp", 11, "mlp")):
        sparsify_checkpoint(tmp_path / name)
        found = load_dictionary(tmp_path / name)
        assert (found.origin.layer, found.origin.site) == (layer, site)
    given = weights()
    activations = ((HIDDEN - given.bias) @ given.encoder.T + given.encoder_bias).relu()
    top = activations.topk(4)
    expected = torch.zeros_like(activations).scatter(1, top.indices, top.values)
    assert torch.allclose(densified(found.encode(HIDDEN)), expected, atol=1e-6)
    reconstruction = expected @ given.directions + given.bias
    assert torch.allclose(found.decode(found.encode(HIDDEN)), reconstruction, atol=1e-6)


def test_the_library_sparsify_agrees(tmp_path):
    sparsify = pytest.importorskip("sparsify", reason="eai-sparsify is not installed")
    coder = sparsify.SparseCoder(6, sparsify.SparseCoderConfig(num_latents=20, k=4))
    for part in coder.parameters():
        part.data = torch.randn(part.shape, generator=torch.Generator().manual_seed(len(part)))
    coder.save_to_disk(tmp_path / "layers.1")
    found = load_dictionary(tmp_path / "layers.1")
    with torch.no_grad():
        expected = coder(HIDDEN).sae_out
    assert torch.allclose(found.decode(found.encode(HIDDEN)), expected, atol=1e-5)


def sae_of(architecture, **settings):
    sae_lens = pytest.importorskip("sae_lens", reason="the extra sae is not installed")
    name = {"topk": "TopKSAE", "standard": "StandardSAE", "jumprelu": "JumpReLUSAE"}[architecture]
    settings |= {"k": 4} if architecture == "topk" else {}
    config = getattr(sae_lens, f"{name}Config")(d_in=6, d_sae=20, **settings)
    config.metadata.model_name = "tiny"
    config.metadata.hook_name = "blocks.3.hook_resid_pre"
    sae = getattr(sae_lens, name)(config)
    generator = torch.Generator().manual_seed(0)
    for part in sae.parameters():
        part.data = torch.randn(part.shape, generator=generator)
    return sae


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("topk", {}),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("topk", {"apply_b_dec_to_input": False}),
        ("standard", {}),
        ("jumprelu", {}),
    ],
)
def test_a_folder_of_sae_lens_gives_its_own_reconstruction(tmp_path, architecture, settings):
    sae = sae_of(architecture, **settings)
    sae.save_model(tmp_path)
    found = load_dictionary(tmp_path)
    assert found.origin == Origin("tiny", None, 2, "residual")
    with torch.no_grad():
        codes, expected = sae.encode(HIDDEN), sae(HIDDEN)
    assert torch.allclose(densified(found.encode(HIDDEN)), codes, atol=1e-5)
    assert torch.allclose(found.decode(found.encode(HIDDEN)), expected, atol=1e-4)


def test_a_name_of_the_registry_is_asked_for_as_it_is_written(monkeypatch):
    sae, asked = sae_of("topk"), []
    sae.cfg.metadata.hook_name = "blocks.3.hook_mlp_out"

    def from_pretrained(*given, **options):
        asked.append((given, options))
        return sae

    monkeypatch.setattr("sae_lens.SAE.from_pretrained", from_pretrained)
    found = load_dictionary("sae-lens:a-release:layer_3/width:16k")
    assert asked == [(("a-release", "layer_3/width:16k"), {"device": "cpu"})]
    assert found.origin == Origin("tiny", None, 3, "mlp")
    for hook in ("blocks.0.hook_resid_pre", "blocks.3.attn.hook_z"):
        sae.cfg.metadata.hook_name = hook
        with pytest.raises(ValueError, match=f"{hook}.* is not an output of a decoder block"):
            load_dictionary("sae-lens:a-release:layer_3")


def test_an_autoencoder_of_sae_lens_that_is_no_sum_is_refused(tmp_path):
    sae_of("standard", normalize_activations="layer_norm").save_model(tmp_path)
    with pytest.raises(ValueError, match=r"normalised first \(layer_norm\)"):
        load_dictionary(tmp_path)


def test_settings_of_sae_lens_of_another_type_are_named(tmp_path):
    sae_of("topk").save_model(tmp_path)
    path = tmp_path / "cfg.json"
    intact = json.loads(path.read_text())
    for change, message in (
        ({"d_in": "6"}, "d_in is '6', not a whole number from 1"),
        ({"d_sae": 20.5}, "d_sae is 20.5"),
        ({"k": True}, "k is True"),
        ({"metadata": []}, r"metadata is \[\], not an object"),
        ({"dtype": 32}, "dtype is 32, not text"),
        ({"normalize_activations": None}, "normalize_activations is None"),
        ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input is 'no', not true or false"),
        ({"architecture": "none such"}, "sae-lens makes no autoencoder of it"),
        ({"d_sae": 21}, "sae-lens makes no autoencoder of it"),
    ):
        path.write_text(json.dumps(intact | change))
        with pytest.raises(ValueError, match=message):
            load_dictionary(tmp_path)
    for text in ("[1]", "{", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"cfg\.json is damaged\. Fetch or write it again"):
            load_dictionary(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path):
    for name, made, message in (
        ("nothing", None, "holds no dictionary"),
        ("layers.1", {"skip_connection": True}, "skip_connection: True"),
        ("layers.2", {"activation": "groupmax"}, "activation: groupmax"),
        ("layers.3", {"k": 21}, "with k 21"),
        ("elsewhere", {}, "does not give the layer"),
    ):
        if made is not None:
            sparsify_checkpoint(tmp_path / name, **made)
        with pytest.raises(ValueError, match=message):
            load_dictionary(tmp_path / name)
    for spoil, message in (
        (lambda path: path.write_bytes(b"12"), "damaged"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: save_file({"encoder": torch.zeros(1)}, path), "has no tensor bias"),
        (lambda path: _with_a_nan(path), "directions holds values that are not finite"),
        (lambda path: _changed(path, torch.zeros_like), "encoder holds zeros only"),
        (lambda path: _changed(path, torch.Tensor.long), "encoder holds torch.int64"),
        (lambda path: _changed(path, torch.Tensor.flatten), "directions have 1 dimensions"),
    ):
        save_dictionary(TopKDictionary(ORIGIN, weights(), 4), tmp_path / "own")
        spoil(tmp_path / "own" / "dictionary.safetensors")
        with pytest.raises(ValueError, match=message):
            load_dictionary(tmp_path / "own")


def test_settings_that_fit_no_dictionary_are_named(tmp_path):
    path = tmp_path / "dictionary.json"
    for change, message in (
        ({"k": 0}, "k is 0, not a whole number from 1"),
        ({"k": True}, "k is True"),
        ({"k": 2.5}, "k is 2.5"),
        ({"signed": "no"}, "signed is 'no', not true or false"),
        ({"origin": None}, "origin is None"),
        ({"origin": {"more": 1}}, "origin is .*more"),
        ({"origin": {"layer": 1}}, "base is None"),
        ({"layer": -1}, "layer is -1, not a whole number from 0"),
        ({"layer": "1"}, "layer is '1'"),
        ({"site": "attention"}, "site is 'attention', not residual or mlp"),
        ({"site": ["mlp"]}, r"site is \['mlp'\]"),
        ({"kind": "difference"}, "kind is 'difference', not states or differences"),
        ({"fingerprint": 3}, "fingerprint is 3"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"adapter": []}, r"adapter is \[\]"),
        ([1], "holds list, not an object"),
        (None, "is damaged or not JSON"),
    ):
        save_dictionary(TopKDictionary(ORIGIN, weights(), 4), tmp_path)
        given = json.loads(path.read_text())
        if isinstance(change, dict):
            inner = change.keys() & given["origin"].keys()
            (given["origin"] if inner else given).update(change)
        text = json.dumps(given if isinstance(change, dict) else change)
        path.write_text(text if change is not None else text[:-1])
        with pytest.raises(ValueError, match=f"{path}.*{message}"):
            load_dictionary(tmp_path)


def test_a_layer_below_the_first_block_is_none_of_the_model():
    model = tiny_model()
    with pytest.raises(ValueError, match="is of layer -1, but"):
        check_base(random_dictionary(model, layer=-1), model)


def _changed(path, change):
    save_file({name: change(part).clone() for name, part in load_file(path).items()}, path)


def _with_a_nan(path):
    tensors = load_file(path)
    tensors["directions"][2, 1] = torch.nan
    save_file(tensors, path)


def test_without_the_extra_the_error_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    (tmp_path / "cfg.json").write_text("{}")
    for name in (tmp_path, "sae-lens:release:layer_3"):
        with pytest.raises(ValueError, match=r"pip install 'rahf\[sae\]'"):
            load_dictionary(name)
    with pytest.raises(ValueError, match="write sae-lens:RELEASE:ID"):
        load_dictionary("sae-lens:release")
