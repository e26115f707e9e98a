"""Weights whose names are not those of the model are refused, and never replaced by random ones."""

import importlib
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import classifier, lora, randomize, tiny_model
from transformers import AutoModelForSequenceClassification

import rahf
from rahf.distributed.loaded_weights import check_loaded
from rahf.judges.references import load_encoder
from rahf.models.adapters import (
    add_teachers,
    attach_policy,
    base_model,
    load_blocks,
    load_model,
    put_adapter,
)
from rahf.models.classifiers import load_classifier, load_to_train

CPU = torch.device("cpu")


def rewritten(source, folder, change):
    """Copy the folder of a model or an adapter with other tensors."""
    shutil.copytree(source, folder)
    (file,) = folder.glob("*.safetensors")
    save_file({k: v.clone() for k, v in change(load_file(file)).items()}, file, {"format": "pt"})
    return folder


def without(tensors, ending):
    return {name: value for name, value in tensors.items() if not name.endswith(ending)}


def renamed(tensors):
    return {name.replace(".mlp.", ".ffn."): value for name, value in tensors.items()}


def with_foreign(tensors):
    return tensors | {"model.layers.0.other.weight": torch.ones(2)}


def changed(name, change):
    """Change the values of one tensor."""
    return lambda tensors: {k: change(v) if k.endswith(name) else v for k, v in tensors.items()}


def with_value(value):
    return lambda tensor: tensor.index_fill(0, torch.tensor([3]), value)


UP, EMBEDDING = "layers.1.mlp.up_proj.weight", "embed_tokens.weight"

UNUSABLE = {
    "NaN": (
        changed(UP, with_value(float("nan"))),
        r"NaN or infinity in 1 of \d+ tensors .*up_proj",
    ),
    "infinity": (changed(EMBEDDING, with_value(-float("inf"))), "NaN or infinity in 1.*embed_tok"),
    "NaN everywhere": (changed("", lambda t: t * float("nan")), r"NaN or infinity in .*, \.\.\.\)"),
    "int8": (
        changed(UP, lambda t: (10 * t).to(torch.int8)),
        r"1 weights .* stored as I8 .*up_proj",
    ),
    "float8": (changed(UP, lambda t: t.to(torch.float8_e4m3fn)), "stored as F8_E4M3 .*up_proj"),
}

BASES = {
    **UNUSABLE,
    "missing": (lambda tensors: without(tensors, "layers.0.mlp.up_proj.weight"), "1 tensors are"),
    "renamed": (renamed, r"12 tensors are missing \(.*, \.\.\.\).*12 tensors fit no module"),
    "foreign": (with_foreign, r"fit no module \(model.layers.0.other.weight\)"),
}


@pytest.mark.parametrize("case", BASES)
def test_a_base_with_other_tensors_is_refused(family, tmp_path, case):
    change, message = BASES[case]
    folder = rewritten(family.base, tmp_path / "changed", change)
    load = {
        "base": lambda: base_model(str(folder)),
        "teacher": lambda: load_blocks(folder, 2),
        "asked": lambda: load_model(folder, device=CPU),
        "trained as a judge": lambda: load_to_train(str(folder), {}),
    }
    for refuse in load.values():
        with pytest.raises(ValueError, match=str(folder)):
            refuse()
    with pytest.raises(ValueError, match=message):
        base_model(str(folder))


@pytest.mark.parametrize("case", ["int8", "float8"])
def test_weights_of_8_bits_in_a_bin_file_are_refused_too(family, tmp_path, case):
    folder = rewritten(family.base, tmp_path / "changed", UNUSABLE[case][0])
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"1 weights .* stored as torch\.{case}.*up_proj"):
        base_model(str(folder))
    torch.save({key: each.float() for key, each in tensors.items()}, folder / "pytorch_model.bin")
    base_model(str(folder))


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_encoder_of_unusable_weights_is_refused(family, tmp_path, case):
    change, message = UNUSABLE[case]
    folder = str(rewritten(family.base, tmp_path / "changed", change))
    with pytest.raises(ValueError, match=message):
        load_encoder(folder, {"dtype": "auto", "trust_remote_code": False}, CPU)


def test_weights_that_leave_the_range_of_their_type_are_refused(family, tmp_path):
    change = changed(EMBEDDING, lambda tensor: tensor * 1e6)
    folder = str(rewritten(family.base, tmp_path / "changed", change))
    base_model(folder)
    with pytest.raises(ValueError, match="load them as float32 or bfloat16"):
        base_model(folder, {"dtype": torch.float16})


def test_weights_in_several_files_or_in_few_bits_are_checked(family, tmp_path):
    whole = base_model(str(family.base))
    whole.save_pretrained(tmp_path / "parts", max_shard_size="2KB")
    base_model(str(tmp_path / "parts"))
    bits = importlib.import_module("bitsandbytes").nn.Params4bit
    four = bits(torch.arange(2048.0).view(32, 64), requires_grad=False, quant_type="nf4").to("cpu")
    whole.model.layers[1].mlp.up_proj.weight = four
    check_loaded(family.base, whole, NOTHING)
    state = four.quant_state  # its scales are quantised themselves, or not
    (state.state2.absmax if state.nested else state.absmax)[0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of .*up_proj"):
        check_loaded(family.base, whole, NOTHING)


NOTHING = {"missing_keys": set(), "unexpected_keys": set()}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "gpt_neox"])
def test_a_complete_base_is_loaded_whatever_it_ties(tmp_path, architecture):
    tiny_model(architecture).save_pretrained(tmp_path)
    base_model(str(tmp_path))
    load_blocks(tmp_path, 2)


def half(tensors):
    return dict(list(tensors.items())[::2])


ADAPTERS = {
    "foreign": lambda tensors: tensors | {"base_model.model.model.layers.9.x.lora_A.weight": ONE},
    "none": lambda tensors: {},
    "half": half,
    "other": lambda tensors: {k.replace("self_attn", "attn"): v for k, v in tensors.items()},
}
ONE = torch.ones(1)


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_with_other_tensors_is_refused(family, tmp_path, case):
    folder = rewritten(family.adapters["positive"], tmp_path / "changed", ADAPTERS[case])
    policy = attach_policy(family.load_base(), lora(), range(3))
    for refuse in (
        lambda: load_model(folder),
        lambda: add_teachers(policy, {"positive": folder}, 3),
        lambda: attach_policy(family.load_base(), lora(), range(3), folder),
        lambda: put_adapter(put_adapter(family.load_base(), family.adapters["negative"]), folder),
    ):
        with pytest.raises(ValueError, match=f"{folder} are not those"):
            refuse()


def test_a_language_model_is_no_reward_model(family):
    for name in (family.base, family.adapters["positive"]):
        with pytest.raises(ValueError, match=r"not a reward model.*score.weight.*choice:"):
            load_classifier(name, {}, CPU)


@pytest.mark.parametrize("with_head", [True, False])
def test_an_adapter_is_a_reward_model_with_its_head_only(family, tmp_path, with_head):
    base = AutoModelForSequenceClassification.from_pretrained(family.base, num_labels=1)
    config = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj"])
    model = get_peft_model(base, config)
    randomize(model, "default", seed=1)
    model.save_pretrained(tmp_path / "reward")
    ids = torch.tensor([[5, 6, 7]])
    expected = model.eval()(input_ids=ids).logits
    if with_head:
        found = load_classifier(tmp_path / "reward", {}, CPU)
        assert torch.allclose(found(input_ids=ids).logits, expected, atol=1e-6)
        return
    headless = rewritten(
        tmp_path / "reward", tmp_path / "headless", lambda tensors: without(tensors, "score.weight")
    )
    with pytest.raises(ValueError, match="not a reward model"):
        load_classifier(headless, {}, CPU)


def test_a_complete_classifier_is_loaded(tmp_path):
    classifier().save_pretrained(tmp_path)
    load_classifier(tmp_path, {}, CPU)
    load_to_train(str(tmp_path), {})


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "gpt_neox"])
def test_a_language_model_gets_a_head_where_it_is_to_be_trained_as_a_judge(tmp_path, architecture):
    tiny_model(architecture).save_pretrained(tmp_path)
    assert load_to_train(str(tmp_path), {}).num_labels == 1


def test_an_adapter_is_not_trained_as_a_judge(family):
    with pytest.raises(ValueError, match="is an adapter: merge it into its base"):
        load_to_train(str(family.adapters["positive"]), {})


def test_every_model_that_is_loaded_is_checked():
    loaders = re.compile(r"AutoModel\w*\.from_pretrained\(\s*(?!\{)")
    for path in Path(rahf.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "report" not in path.parts and loaders.search(text):  # the report shows code to readers
            assert "check_loaded(" in text, path
            assert len(loaders.findall(text)) <= text.count("check_loaded("), path
