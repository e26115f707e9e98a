"""A base in 4 or 8 bits under adapters in float32 (bitsandbytes)."""

import pytest
import torch
import yaml
from accelerate import PartialState
from tiny_models import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from rahf.artifacts import read_lines
from rahf.pipeline.inputs import load_base
from rahf.pipeline.run import run_pipeline
from rahf.recipe.files import checked_recipe
from rahf.training.adapter_trainer import AdapterTrainer

EIGHT = pytest.param("load_in_8bit", "Int8Params", ())
FOUR = pytest.param("load_in_4bit", "Params4bit", ("--use_cpu", "false"), marks=pytest.mark.gpu)


@pytest.fixture
def wide_recipe(recipe_file, tmp_path):
    """Return the recipe on a base whose matrices are as wide as a block of quantised numbers."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(**size, **heads, initializer_range=0.2, eos_token_id=1, bos_token_id=1)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    tiny_tokenizer().save_pretrained(tmp_path / "wide")
    recipe = yaml.safe_load(recipe_file.read_text()) | {"model_name_or_path": "wide"}
    recipe |= {
        "alpha": 2,
        "dpo_weight": 0,
    }  # whose loss begins at log 2 and hides how far the distance falls
    recipe_file.write_text(yaml.safe_dump(recipe))
    return recipe_file


@pytest.mark.parametrize(("key", "kind", "where"), [EIGHT, FOUR])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_adapters_on_a_quantised_base_learn_in_float32(
    wide_recipe, monkeypatch, key, kind, where, checkpointing
):
    seen = []
    prepare = AdapterTrainer._prepare_for_training

    def prepare_and_look(trainer, *args):
        named = dict(trainer.model.named_parameters())
        base = {type(value).__name__ for name, value in named.items() if "base_layer" in name}
        seen.append((base, {value.dtype for value in named.values() if value.requires_grad}))
        return prepare(trainer, *args)

    monkeypatch.setattr(AdapterTrainer, "_prepare_for_training", prepare_and_look)
    overrides = ["--learning_rate", "1e-2", "--max_steps", "6", f"--{key}", "true", *where]
    overrides += ["--activation_checkpointing", checkpointing]
    run_pipeline(checked_recipe(wide_recipe, overrides), quiet=True)
    assert seen == 3 * [({kind}, {torch.float32})]
    lines = [line for line in read_lines(wide_recipe.parent / "out/log.jsonl") if "loss" in line]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["repr/reached"] > 0.2


def test_quantised_weights_predict_about_what_the_full_ones_predict(wide_recipe):
    whole = load_base(checked_recipe(wide_recipe, []))
    small = load_base(checked_recipe(wide_recipe, ["--load_in_8bit", "true"]))
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        expected, given = whole(ids).logits.flatten(), small(ids).logits.float().flatten()
    assert torch.cosine_similarity(given, expected, dim=0) > 0.99
    assert not torch.equal(given, expected)


def test_four_bits_on_a_cpu_are_refused_since_nothing_could_be_learned(wide_recipe):
    PartialState(cpu=True)
    with pytest.raises(ValueError, match=r"load_in_4bit: true needs an accelerator.*load_in_8bit"):
        load_base(checked_recipe(wide_recipe, ["--load_in_4bit", "true"]))
