"""The default training of every causal language model family and its export, on tiny models.

Eight unlike families are run by default; all of them in `make test-all`.
"""

from dataclasses import replace

import pytest
import torch
from model_families import family_model
from tiny_models import EOS, lora, randomize, tiny_dataset, tiny_tokenizer
from tiny_runs import QUIET
from transformers import AutoModelForCausalLM

from rahf.cli import main
from rahf.generation.answers import WORTH_SHARING, answers
from rahf.generation.decoding import Decoding
from rahf.generation.unfinished import left_padded
from rahf.models.adapters import attach_policy, put_adapter
from rahf.recipe.methods import METHODS
from rahf.trainer import RAHFTrainer
from rahf.trainer_config import RAHFConfig

# Attention, learned positions, experts, windows, recurrence, convolution, fused matrices.
UNLIKE = (*("llama", "gpt2", "mixtral", "gemma3_text", "qwen3_next", "lfm2_moe", "phi3", "mamba"),)
OTHERS = (
    *("afmoe", "apertus", "arcee", "bamba", "biogpt", "bitnet", "bloom", "codegen", "cohere"),
    *("cohere2", "cwm", "deepseek_v2", "deepseek_v3", "diffllama", "doge", "dots1", "ernie4_5"),
    *("ernie4_5_moe", "exaone4", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo", "gemma"),
    *("gemma2", "glm", "glm4", "glm4_moe", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss"),
    *("gpt_neox_japanese", "gptj", "granite", "granitemoe", "granitemoehybrid", "helium"),
    *("granitemoeshared", "hunyuan_v1_dense", "hunyuan_v1_moe", "jamba", "jetmoe", "lfm2"),
    *("llama4_text", "mamba2", "minimax", "minimax_m2", "ministral", "ministral3", "mistral"),
    *("modernbert-decoder", "mpt", "nanochat", "nemotron", "nemotron_h", "olmo", "olmo2"),
    *("olmo3", "olmo_hybrid", "olmoe", "opt", "persimmon", "phi", "phimoe", "qwen2"),
    *("qwen2_moe", "qwen3", "qwen3_5_text", "qwen3_moe", "recurrent_gemma", "rwkv", "seed_oss"),
    *("smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma", "xglm", "xlstm"),
)
FAMILIES = [*UNLIKE, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
WRITTEN = 6  # tokens after a prompt


def default_training(family, method, folder):
    """Return a trainer of two steps with the defaults of a method, on teachers that differ."""
    args = RAHFConfig(
        output_dir=str(folder / "run"),
        method=method,
        per_device_train_batch_size=2,
        max_steps=2,
        learning_rate=1e-2,
        retain_rows=6,  # sampled from the model
        retain_tokens=24,
        **QUIET,
    )
    teachers = {}
    for seed, name in enumerate(METHODS[method].views(args.reference).teachers()):
        teacher = attach_policy(family_model(family), lora(), range(4))
        randomize(teacher, "default", seed, scale=0.5)
        teachers[name] = folder / name
        teacher.save_pretrained(teachers[name])
    base, rows = family_model(family), tiny_dataset(4)
    return RAHFTrainer(base, args, rows, None, tiny_tokenizer(), lora(), teachers)


@pytest.mark.parametrize("method", ["dual", "lorra", "scit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_by_default_and_its_adapter_is_reloaded(family, method, tmp_path):
    trainer = default_training(family, method, tmp_path)
    items = [trainer.train_dataset[index] for index in range(2)]
    losses = [
        trainer.alignment(trainer.model, replace(trainer.data_collator, packed=packed)(items)).loss
        for packed in {False, trainer.alignment.packed}
    ]
    torch.testing.assert_close(losses[0], losses[-1], rtol=1e-3, atol=1e-4)
    trainer.train()
    trainer.save_model()
    reloaded = put_adapter(family_model(family), tmp_path / "run").eval()
    ids = torch.tensor([[5, 6, 7, 8, EOS]])
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids, use_cache=False).logits
        found = reloaded(input_ids=ids, use_cache=False).logits
        base = family_model(family)(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, base, atol=1e-4)


@torch.no_grad()
def by_loop(model, prompt):
    """Return the likeliest tokens, each by a forward of one row without a cache."""
    ids = list(prompt)
    for _ in range(WRITTEN):
        ids.append(
            int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        )
    return ids[len(prompt) :]


def until(ids, ends):
    """Return the ids up to the first of `ends`."""
    return ids[: next((place + 1 for place, token in enumerate(ids) if token in ends), None)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_writes_beside_other_rows_what_it_writes_alone(family):
    """Cover unlike lengths, rows that end at different steps, and prompts that begin alike."""
    model, tokenizer, decoding = family_model(family), tiny_tokenizer(), Decoding(WRITTEN)
    beginning = list(range(10, 10 + WORTH_SHARING))
    unlike = [[5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 7], [5, 6, 7, 8, 20], [8, 9, 12]]
    for prompts in (unlike, [beginning + prompt for prompt in unlike]):
        alone = [by_loop(model, prompt) for prompt in prompts]
        for stop in {ids[1] for ids in alone}:  # a row ends after at most two tokens
            model.generation_config.eos_token_id = stop
            expected = [until(ids, {stop, EOS}) for ids in alone]
            found = dict(answers(model, tokenizer, prompts, decoding))
            assert [found[row].ids for row in range(len(prompts))] == expected


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_is_exported_as_predicts_what_its_adapter_predicts(family, tmp_path):
    family_model(family).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    base, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "base"), torch.tensor([[5, 6, 7]])
    before = base(input_ids=ids, use_cache=False).logits
    adapted = attach_policy(base, lora(), range(4)).eval()
    randomize(adapted, "default", 0, scale=0.5)  # in every matrix: one read past it would show
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted(input_ids=ids, use_cache=False).logits
    assert (expected - before).abs().max() > 0.01
    assert main(["export", str(tmp_path / "adapter"), "--output", str(tmp_path / "out")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out/merged").eval()
    found = merged(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-3)
    reloaded = put_adapter(family_model(family), tmp_path / "out/adapter").eval()
    found = reloaded(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize(
    ("family", "broken", "said"),
    [
        ("lfm2_moe", "rahf.generation.unfinished.left_padded", "unlike lengths are read apart"),
        ("mamba", "rahf.generation.unfinished.only_recurrent", "rows are read from their first"),
        ("lfm2_moe", "transformers.cache_utils.Cache.reorder_cache", "finished rows stay in the"),
        ("qwen3_next", "rahf.generation.unfinished.kept_cache", "rows are read from their first"),
    ],
)
def test_a_way_to_be_fast_that_is_not_exact_is_left_and_named(
    family, broken, said, monkeypatch, caplog
):
    def fails(*_):
        raise NotImplementedError

    def without_mask(rows, pad_token_id):  # padding is read as tokens
        ids, mask = left_padded(rows, pad_token_id)
        return ids, torch.ones_like(mask)

    wrong = {"only_recurrent": lambda _: False, "left_padded": without_mask}
    monkeypatch.setattr(broken, wrong.get(broken.rpartition(".")[2], fails))
    test_a_family_writes_beside_other_rows_what_it_writes_alone(family)
    assert said in caplog.text
    assert caplog.text.count("generation is slower for this model") == 1
