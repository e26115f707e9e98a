import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import ARCHITECTURES, DEPTH, EOS, lora, make_family, randomize, tiny_model
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, OPTConfig

from rahf.models.adapters import (
    add_teachers,
    attach_policy,
    check_same_base,
    find_blocks,
    frozen_pass,
    is_adapter,
    load_blocks,
    put_adapter,
    trainable,
)
from rahf.models.capture import record
from rahf.models.lora_targets import oriented
from rahf.training.adapter_trainer import save_policy

IDS = torch.tensor([[5, 6, 7, 8, EOS]])


def states_of(model, layers=(0, 2)):
    with record(model, layers, torch.arange(IDS.numel()), stop=False) as recording, torch.no_grad():
        model(input_ids=IDS)
    return recording.stack()


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trainable_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def blocks_of_names(names):
    return {int(name.split(".layers.")[1].split(".")[0]) for name in names}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_policy_is_a_lora_on_the_blocks_up_to_the_top_target_layer(architecture):
    model = attach_policy(tiny_model(architecture), lora(), range(3))
    modules = find_blocks(model).modules
    for layer, block in enumerate(modules):
        names = {name for name, parameter in block.named_parameters() if parameter.requires_grad}
        assert all(".default." in name for name in names)
        assert bool(names) == (layer < 3)
    inside = sum(len(trainable(block)) for block in modules)
    assert inside == len(trainable(model)) > 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_all_linear_is_every_matrix_of_the_blocks_up_to_the_top_target_layer(architecture):
    model = attach_policy(tiny_model(architecture), lora(target_modules="all-linear"), range(3))
    blocks = find_blocks(model).modules
    matrices = {
        name
        for name, parameter in find_blocks(tiny_model(architecture)).modules[0].named_parameters()
        if parameter.dim() == 2
    }
    for layer, block in enumerate(blocks):
        adapted = {
            name.partition(".lora_A")[0] + ".weight"
            for name, _ in block.named_parameters()
            if ".lora_A." in name
        }
        assert adapted == (matrices if layer < 3 else set())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_a_pattern_is_matched_as_peft_does_in_the_blocks_up_to_the_top_target_layer(architecture):
    pattern = r".*\.([02]|3)\.(self_attn\.q_proj|attn\.c_attn|attention\.dense|mlp.*h)"
    model = attach_policy(tiny_model(architecture), lora(target_modules=pattern), range(3))
    base = tiny_model(architecture)
    everywhere = get_peft_model(base, oriented(lora(target_modules=pattern), base))
    above = f".{DEPTH - 1}."
    expected = {name for name in trainable_names(everywhere) if above not in name}
    assert trainable_names(model) == expected
    assert 0 < len(expected) < len(trainable_names(everywhere))


def test_a_policy_of_a_pattern_is_saved_and_loaded(family, tmp_path):
    pattern = r"model\.layers\.\d+\.(self_attn|mlp)\..*_proj"  # so many that PEFT shortens names
    model = attach_policy(family.load_base(), lora(target_modules=pattern), range(3))
    randomize(model, "default", seed=3)
    save_policy(model, tmp_path)
    loaded = PeftModel.from_pretrained(family.load_base(), tmp_path)
    assert torch.equal(states_of(loaded), states_of(model))


@pytest.mark.parametrize("pattern", ["q_proj", r"model\.layers\.3\..*q_proj", "lm_head"])
def test_a_pattern_that_matches_nothing_in_the_blocks_is_refused(family, pattern):
    with pytest.raises(ValueError, match=r"no module in the blocks 0 to 2.*model\.layers\.2\."):
        attach_policy(family.load_base(), lora(target_modules=pattern), range(3))


def test_a_new_policy_predicts_what_the_base_predicts(family):
    base = states_of(family.load_base())
    assert torch.equal(states_of(attach_policy(family.load_base(), lora(), range(3))), base)


def test_the_policy_is_named_default(family):
    model = attach_policy(family.load_base(), lora(), range(3))
    add_teachers(model, family.adapters, 3)
    assert model.active_adapter == "default"
    assert set(model.peft_config) == {"default", *family.adapters}


def test_blocks_that_the_user_names_are_kept(family):
    model = attach_policy(family.load_base(), lora(layers_to_transform=[1]), range(3))
    assert blocks_of_names(trainable_names(model)) == {1}


@pytest.mark.parametrize("name", ["positive", "contrast"])
def test_a_policy_that_starts_as_a_teacher_has_the_very_states_of_it(family, name):
    model = attach_policy(family.load_base(), lora(), range(3), family.adapters[name])
    add_teachers(model, family.adapters, 3)
    own = states_of(model)
    with frozen_pass(model, name):
        assert torch.equal(states_of(model), own)
    assert torch.equal(states_of(family.load(name)), own)
    assert not torch.equal(states_of(family.load_base()), own)


@pytest.mark.parametrize("start", [None, "positive"])
def test_teachers_get_no_gradient_and_the_policy_none_above_the_top_layer(family, start):
    start = start and family.adapters[start]
    model = attach_policy(family.load_base(), lora(), range(2), start)
    add_teachers(model, family.adapters, 2)
    names = trainable_names(model)
    assert all(".default." in name for name in names)
    assert blocks_of_names(names) == {0, 1}


def test_a_model_that_carries_a_policy_keeps_it(family):
    model = attach_policy(family.load_base(), lora(), range(3))
    randomize(model, "default", seed=3)
    before = states_of(model)
    again = attach_policy(model, lora(rank=7), range(3))
    assert again is model
    assert torch.equal(states_of(again), before)


def test_adapters_are_float32_on_a_bfloat16_base(family):
    model = attach_policy(family.load_base(dtype=torch.bfloat16), lora(), range(3))
    add_teachers(model, family.adapters, 3)
    for name, parameter in model.named_parameters():
        is_adapter_weight = "lora_" in name
        assert parameter.dtype == (torch.float32 if is_adapter_weight else torch.bfloat16), name


def test_every_adapter_predicts_as_a_model_of_its_own(family):
    model = attach_policy(family.load_base(), lora(), range(3))
    add_teachers(model, family.adapters, 3)
    for name in (None, *family.adapters):
        with frozen_pass(model, name):
            assert torch.equal(states_of(model), states_of(family.load(name)))


@pytest.mark.parametrize("name", [None, "positive"])
def test_a_frozen_pass_gives_everything_back(family, name):
    model = attach_policy(family.load_base(), lora(lora_dropout=0.5), range(3))
    add_teachers(model, family.adapters, 3)
    randomize(model, "default", seed=3)
    model.train()
    names, weights = trainable_names(model), snapshot(model)
    with frozen_pass(model, name):
        assert not model.training
        assert not torch.is_grad_enabled()
        inside = states_of(model)
    assert model.training
    assert model.active_adapter == "default"
    assert trainable_names(model) == names
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    model.eval()
    assert not torch.equal(states_of(model), inside)
    with frozen_pass(model, "default"):
        pass
    assert not model.training


@pytest.mark.parametrize("name", [None, "positive"])
def test_a_frozen_pass_gives_everything_back_after_an_exception(family, name):
    model = attach_policy(family.load_base(), lora(), range(3))
    add_teachers(model, family.adapters, 3)
    randomize(model, "default", seed=3)
    names, before = trainable_names(model), states_of(model)
    with pytest.raises(RuntimeError, match="inside"), frozen_pass(model, name):
        raise RuntimeError("inside")
    assert trainable_names(model) == names
    assert torch.equal(states_of(model), before)


def test_an_adapter_that_the_model_has_not_is_refused(family):
    model = attach_policy(family.load_base(), lora(), range(3))
    with (
        pytest.raises(ValueError, match=r"no adapter 'positiv'.*default"),
        frozen_pass(model, "positiv"),
    ):
        pass


@pytest.mark.parametrize("outer", [None, "default", "positive", "negative"])
@pytest.mark.parametrize("inner", [None, "default", "positive", "negative"])
def test_a_nested_pass_runs_its_own_adapter_and_gives_back_the_outer(family, outer, inner):
    model = attach_policy(family.load_base(), lora(), range(3))
    add_teachers(model, family.adapters, 3)
    randomize(model, "default", seed=3)
    model.train()
    names, policy, alone = trainable_names(model), states_of(model), {}
    for name in {outer, inner}:
        with frozen_pass(model, name):
            alone[name] = states_of(model)
    with frozen_pass(model, outer):
        with frozen_pass(model, inner):
            assert torch.equal(states_of(model), alone[inner])
        assert torch.equal(states_of(model), alone[outer])
    assert torch.equal(states_of(model), policy)
    assert trainable_names(model) == names
    assert model.training


def test_a_teacher_of_another_base_is_refused_with_both_names(family, tmp_path):
    other = make_family(tmp_path, "llama")
    model = attach_policy(family.load_base(), lora(), range(3))
    for refuse in (
        lambda: check_same_base(other.adapters["positive"], str(family.base)),
        lambda: add_teachers(model, {"positive": other.adapters["positive"]}, 3),
        lambda: attach_policy(family.load_base(), lora(), range(3), other.adapters["positive"]),
    ):
        with pytest.raises(ValueError, match="was trained on") as refused:
            refuse()
        assert repr(str(other.base)) in str(refused.value)
        assert repr(str(family.base)) in str(refused.value)


def test_one_folder_written_in_two_ways_is_one_base(family, monkeypatch):
    monkeypatch.chdir(family.base.parent)
    check_same_base(family.adapters["positive"], "base")
    check_same_base(family.adapters["positive"], f"{family.base}/../base")


def test_an_adapter_is_distinguished_from_a_full_model(family):
    assert is_adapter(family.adapters["positive"])
    assert not is_adapter(family.base)


def merged(family, name, folder):
    """Save the teacher as a full model."""
    PeftModel.from_pretrained(
        family.load_base(), family.adapters[name]
    ).merge_and_unload().save_pretrained(folder)
    return folder


def test_a_full_model_predicts_what_the_same_teacher_does_as_an_adapter(family, tmp_path):
    folder = merged(family, "positive", tmp_path / "full")
    model = attach_policy(family.load_base(), lora(), range(3))
    full = add_teachers(model, {"positive": folder, "negative": family.adapters["negative"]}, 3)
    assert set(full) == {"positive"}
    assert "positive" not in model.peft_config
    assert torch.allclose(
        states_of(full["positive"]), states_of(family.load("positive")), atol=1e-5
    )


def test_of_a_full_model_only_the_blocks_that_are_needed_are_loaded(family, tmp_path):
    full = load_blocks(merged(family, "positive", tmp_path / "full"), 2, dtype=torch.float32)
    assert len(full.model.layers) == 2
    assert not trainable(full)
    assert not full.training


def test_a_full_model_given_as_an_object_is_frozen(family):
    teacher = family.load_base().train()
    model = attach_policy(family.load_base(), lora(), range(3))
    assert add_teachers(model, {"positive": teacher}, 3) == {"positive": teacher}
    assert not trainable(teacher)
    assert not teacher.training
    assert len(teacher.model.layers) == DEPTH


def test_a_policy_cannot_start_as_a_full_model(family, tmp_path):
    folder = merged(family, "positive", tmp_path / "full")
    for teacher in (folder, family.load_base()):
        with pytest.raises(ValueError, match=r"full model.*adapter"):
            attach_policy(family.load_base(), lora(), range(3), teacher)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64),
        OPTConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=32,
            word_embed_proj_dim=16,
            attention_dropout=0.1,
        ),
        BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2, hidden_dropout=0.1),
    ],
    ids=lambda config: config.model_type,
)
def test_a_policy_in_training_predicts_what_its_base_does_without_dropout(config, caplog):
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 1
    base, ids = AutoModelForCausalLM.from_config(config).eval(), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = base(input_ids=ids).logits
        policy = attach_policy(base, lora(target_modules="all-linear"), range(2)).train()
        torch.testing.assert_close(policy(input_ids=ids).logits, expected)
    assert "dropout (0.1) is off" in caplog.text


def test_dropout_of_the_adapters_stays():
    policy = attach_policy(tiny_model(), lora(lora_dropout=0.5), range(2)).train()
    randomize(policy, "default", seed=3)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert not torch.equal(policy(input_ids=ids).logits, policy(input_ids=ids).logits)


CHANGES_THE_BASE = [
    *({"init_lora_weights": name} for name in ("pissa", "pissa_niter_4", "olora")),
    {"layer_replication": [[0, 3], [1, 4]]},
    {"bias": "all"},
    {"bias": "lora_only"},
]
KEEPS_THE_BASE = [
    *({"init_lora_weights": name} for name in (True, False, "gaussian", "orthogonal")),
    {"use_dora": True},
    {"use_rslora": True},
    {"lora_bias": True},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["input_layernorm"]},
    {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 1}},
]


@pytest.mark.parametrize("options", CHANGES_THE_BASE)
def test_a_policy_that_changes_or_trains_the_base_is_refused(options):
    message = r"peft_config\) (changes|trains) the base's own weights \(.*Set .*bias: none"
    with pytest.raises(ValueError, match=message):
        attach_policy(tiny_model("qwen2"), lora(**options), range(3))


@pytest.mark.parametrize("name", ["default", "positive"])
@pytest.mark.parametrize("options", CHANGES_THE_BASE)
def test_a_finished_adapter_that_changes_the_base_is_refused(options, name, tmp_path):
    changing = get_peft_model(tiny_model("qwen2"), lora(**options))
    for key, parameter in changing.named_parameters():
        if key.endswith(".bias"):
            parameter.data += 1
    changing.save_pretrained(tmp_path)
    model = tiny_model("qwen2")
    if name != "default":
        model = attach_policy(model, lora(), range(3))
    with pytest.raises(ValueError, match=f"{tmp_path} changes the base's own.*full model"):
        put_adapter(model, tmp_path, name)


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT's, for a bias beside a LoRA
@pytest.mark.parametrize("options", KEEPS_THE_BASE)
def test_the_base_and_a_teacher_predict_the_same_under_and_beside_every_other_lora(
    options, tmp_path
):
    expected = states_of(tiny_model("qwen2"))
    teacher = get_peft_model(tiny_model("qwen2"), lora(**options))
    randomize(teacher, "default", seed=1)
    teacher.save_pretrained(tmp_path)
    spoken = states_of(teacher.eval())
    model = attach_policy(tiny_model("qwen2"), lora(**options), range(3))
    add_teachers(model, {"positive": tmp_path}, DEPTH)
    with frozen_pass(model, None):
        assert torch.equal(states_of(model), expected)
    with frozen_pass(model, "positive"):
        torch.testing.assert_close(states_of(model), spoken)
    assert not [key for key in trainable_names(model) if "default" not in key.split(".")]


TOKENS = {"trainable_token_indices": [3]}


def saved(folder, model=None, **options):
    model = get_peft_model(model or tiny_model(), lora(**options))
    randomize(model, "default", seed=1)
    model.save_pretrained(folder)
    return folder


def test_trainable_tokens_are_refused_beside_another_adapter_and_in_a_policy(tmp_path):
    tokens, plain = saved(tmp_path / "tokens", **TOKENS), saved(tmp_path / "plain")
    alone = put_adapter(tiny_model(), tokens)
    message = r"trainable_token_indices.*modules_to_save"
    with pytest.raises(ValueError, match=message):
        attach_policy(tiny_model(), lora(**TOKENS), range(3))
    with pytest.raises(ValueError, match=message):
        attach_policy(tiny_model(), lora(), range(3), start=tokens)
    with pytest.raises(ValueError, match=message):
        attach_policy(get_peft_model(tiny_model(), lora(**TOKENS)), lora(), range(3))
    with pytest.raises(ValueError, match=message):
        put_adapter(attach_policy(tiny_model(), lora(), range(3)), tokens, "positive")
    with pytest.raises(ValueError, match=message):
        put_adapter(alone, plain, "positive")


def test_an_adapter_of_a_grown_vocabulary_names_both_sizes_and_the_cure(tmp_path):
    grown = tiny_model()
    grown.resize_token_embeddings(44)
    saved(tmp_path, grown, modules_to_save=["embed_tokens", "lm_head"])
    message = r"\[44, 16\] in the adapter.*\[40, 16\] in the model.*resize_token_embeddings\(44\)"
    with pytest.raises(ValueError, match=message):
        put_adapter(tiny_model(), tmp_path)


def test_an_adapter_of_another_rank_names_both_sizes(tmp_path):
    config = saved(tmp_path) / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 2', '"r": 4'))
    with pytest.raises(ValueError, match=r"lora_A.* \[2, 16\] in the adapter.*\[4, 16\] in the mo"):
        put_adapter(tiny_model(), tmp_path)
