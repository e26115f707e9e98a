"""What would stop a run late, or be ignored, is refused when the recipe is read."""

import importlib.util
import json
import struct
import time

import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from rahf.models.shapes import read_decoder
from rahf.recipe import files, training_arguments
from rahf.recipe.direction_files import protected_folders
from rahf.recipe.files import checked_recipe
from rahf.recipe.keys import key_annotation
from rahf.recipe.layers import resolve_layers
from rahf.recipe.other_names import OTHER_NAMES
from rahf.recipe.recipe import RecipeError, load_recipe

PAIRS = [{"prompt": f"p{row}", "chosen": "yes", "rejected": "no"} for row in range(8)]
CONFIG = {"model_type": "llama", "num_hidden_layers": 8, "vocab_size": 100, "hidden_size": 8}
CONFIG |= {"num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def write(tmp_path):
    """Write a model's folder without weights, pairs and a recipe; return the recipe's path."""

    def write(config=(), pad=None, /, **keys):
        model, pairs = tmp_path / "model", tmp_path / "pairs.jsonl"
        model.mkdir(exist_ok=True)
        text = config if isinstance(config, str) else json.dumps({**CONFIG, **dict(config)})
        (model / "config.json").write_text(text)
        if pad is not None:
            (model / "tokenizer_config.json").write_text(json.dumps(pad))
        pairs.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
        whole = {"model_name_or_path": str(model), "dataset_name": str(pairs)}
        whole |= {"output_dir": str(tmp_path / "out"), "dataset_test_split": None, **keys}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole))
        return tmp_path / "recipe.yaml"

    return write


def problems(path):
    with pytest.raises(RecipeError) as error:
        checked_recipe(path)
    return error.value.problems


@pytest.mark.parametrize("family", ["llava", "t5"])
def test_a_base_that_is_no_causal_language_model_is_refused(write, family):
    assert any(
        "not load as a causal language model" in p for p in problems(write({"model_type": family}))
    )


BEST = {"load_best_model_at_end": True}
STEPS = {"eval_strategy": "steps"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (BEST, "load_best_model_at_end: true needs held-out losses"),
        ({**BEST, "save_strategy": "no"}, "load_best_model_at_end: true needs checkpoints"),
        ({**BEST, "eval_strategy": "epoch"}, "load_best_model_at_end: true needs eval_strategy"),
        (
            {**BEST, **STEPS, "eval_steps": 3, "save_steps": 10},
            "load_best_model_at_end: true needs save_steps (10) to be a multiple of eval_steps (3)",
        ),
        ({"save_strategy": "best"}, "save_strategy: best needs held-out losses"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type: reduce_lr_on_plateau"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", **STEPS},
            "teachers inherit a key: lr_scheduler_type: reduce_lr_on_plateau",
        ),
        ({"teachers": STEPS}, "teachers.eval_strategy: teachers have no held-out pairs"),
        ({"teachers": BEST}, "teachers.load_best_model_at_end: teachers have no held-out pairs"),
        ({"seed": -1}, "seed: -1 is out of range, it must be at least 0 and below"),
        ({"data_seed": -1}, "data_seed: -1 is out of range"),
        ({"teachers": {"seed": -1}}, "teachers.seed: -1 is out of range"),
        ({"seed": 2**32}, "seed: 4294967296 is out of range"),
        ({"max_steps": 0}, "max_steps: 0 trains nothing"),
        ({"max_steps": -2}, "max_steps: -2 is out of range"),
        ({"logging_steps": 0}, "logging_steps: 0 is out of range, it must be above 0"),
        ({"save_steps": 2.5}, "save_steps: 2.5 is neither a whole number nor a share"),
        ({"learning_rate": 1e30}, "learning_rate: 1e+30 is out of range, it must be at most 1e+12"),
        ({"learning_rate": 1e4}, "learning_rate: 10000.0 is out of range, it must be at least 0 a"),
        ({"teachers": {"learning_rate": 1e4}}, "teachers.learning_rate: 10000.0 is out of range"),
        ({"alpha": 1e30}, "alpha: 1e+30 is out of range"),
        ({"retain_weight": 10**30}, "retain_weight: 1e+30 is out of range"),
        (
            {"lora_r": 10**6},
            "lora_r: 1000000 is out of range, it must be at least 1 and below 65536",
        ),
        ({"lora_alpha": 1e30}, "lora_alpha: 1000000000000000019884624838656 is out of range"),
        ({"lora_alpha": 10**6}, "lora_alpha: 1000000 is out of range"),
        ({"max_grad_norm": -1}, "max_grad_norm: -1 is out of range"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers: -1 is out of range"),
        ({"report_to": "clearml"}, "report_to: clearml is not installed: pip install clearml"),
        ({"report_to": ["azure_ml"]}, "report_to: azure_ml is not installed: pip install azureml"),
        (
            {"teachers": {"report_to": "clearml"}},
            "teachers.report_to: clearml is not installed",
        ),
        ({"teachers": {"beta": 0.5}}, "teachers.beta: not read by method dual"),
        ({"teachers": {"label_smoothing": 0.1}}, "teachers.label_smoothing: not read by method"),
        ({"target_layers": "0-999999999"}, "target_layers: 0-999999999 is far beyond"),
        ({"target_layers": "9" * 5000}, "target_layers: 999"),
        ({"target_layers": "0.1-0.9:0.0000000001"}, "target_layers: 0.1-0.9:0.0000000001 has a"),
        ({"parallelism_config": 3}, "parallelism_config: remove it"),
        ({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint: remove it"),
        ({"fsdp_config": {"a": 1}}, "fsdp_config: remove it"),
        ({"accelerator_config": {"a": 1}}, "accelerator_config: unknown key 'a', known are split"),
        ({"accelerator_config": "nowhere"}, "accelerator_config: nowhere does not exist"),
        ({"lr_scheduler_kwargs": "text"}, "lr_scheduler_kwargs: 'text' is not a mapping"),
        ({"gradient_checkpointing_kwargs": "text"}, "gradient_checkpointing_kwargs: 'text' is not"),
        (
            {"lr_scheduler_type": "cosine", "teachers": {"lr_scheduler_kwargs": {"a": 1}}},
            "teachers inherit a key: lr_scheduler_kwargs (lr_scheduler_type: cosine): unknown key",
        ),
        ({"optim_args": "hello world"}, "optim_args: 'hello world' is not name=value"),
        ({"ddp_backend": "zz"}, "ddp_backend: 'zz' is not one of nccl"),
        ({"debug": "text"}, "debug: 'text' is not one of underflow_overflow"),
        ({"attn_implementation": "hello"}, "attn_implementation: 'hello' is not one of eager"),
        ({"per_device_train_batch_size": 10**30}, "per_device_train_batch_size: 1000000"),
        ({"lora_r": 10**30}, "lora_r: 1000000"),
        ({"num_train_epochs": 0}, "num_train_epochs: 0 trains nothing"),
        (
            {"align_weight": 0, "dpo_weight": 0},
            "align_weight and sft_weight and dpo_weight are 0, so that no term",
        ),
        ({"target_layers": [10**9]}, "target_layers: 1000000000 is far beyond"),
        ({"protect": ["~nouser/x"]}, "protect: '~nouser/x' is neither a folder of directions nor"),
        ({"protect": [""]}, "protect: should be a list of folders or names, none of them empty"),
        ({"lora_first_layer": 1.5}, "lora_first_layer: 1.5 is neither a block number"),
        ({"lora_first_layer": "1"}, "lora_first_layer: "),
    ],
    ids=str,
)
def test_what_would_stop_a_run_late_is_the_only_problem(write, monkeypatch, keys, said):
    find = importlib.util.find_spec
    gone = ("clearml", "azureml")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in gone else find(name, *rest),
    )
    start = time.perf_counter()
    [problem] = problems(write(**keys))
    assert problem.startswith(said)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    "keys",
    [
        {"attn_implementation": "flash_attention_3"},
        {"attn_implementation": "kernels-community/flash-attn2"},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1}},
        {"optim": "adafactor", "optim_args": "a=1, b=2"},
        {"debug": "underflow_overflow"},
        {"accelerator_config": {"even_batches": False}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"align_weight": 0, "sft_weight": 1},
    ],
    ids=str,
)
def test_what_transformers_takes_is_taken_and_read(write, keys):
    assert files.not_read(checked_recipe(write(**keys))) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"label_smoothing_factor": 0.5},
        {"lr_scheduler_kwargs": {"a": 1}},
        {"gradient_checkpointing_kwargs": {"a": 1}},
        {"fp16": True, "use_cpu": True},
        {"max_steps": 3, "num_train_epochs": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("section", ["", "teachers."])
def test_what_has_no_effect_is_named(write, keys, section):
    recipe = checked_recipe(write(), {f"{section}{key}": value for key, value in keys.items()})
    [line] = files.not_read(recipe)
    assert any(line.startswith(f"{section}{key}: ") for key in keys)


def test_teachers_do_not_inherit_when_the_alignment_is_evaluated(write):
    keys = {**STEPS, "eval_steps": 5, "eval_delay": 1, "eval_on_start": True, "do_eval": True}
    recipe = checked_recipe(write(**keys, save_steps=5, load_best_model_at_end=True))
    assert recipe.training.items() >= keys.items()
    assert recipe.teacher_training == {"save_steps": 5}


def test_the_strength_of_a_dpo_term_is_hinted_at_where_it_is_given_to_a_teacher(write):
    [problem] = problems(write(teachers={"beta": 0.5}))
    assert problem.endswith("the strength of the DPO term is dpo_beta")
    checked_recipe(write(method="dpo_shift", teachers={"beta": 0.5}))


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_name_of_another_project_comes_with_the_one_to_write(write, name):
    if name in training_arguments.training_annotations():
        load_recipe(write(**{name: True}))  # an installed release that still has it
        return
    told = [line for line in problems(write(**{name: "x"})) if line.startswith(f"{name}:")]
    assert told == [f"{name}: is not a key of a recipe: {OTHER_NAMES[name]}"]


def test_the_hints_name_keys_that_there_are():
    for cure in OTHER_NAMES.values():
        verb, key = cure.replace(",", " ").replace(":", " ").split()[:2]
        assert verb in ("use", "remove", "set")
        if verb == "use":
            assert key_annotation(key) is not key_annotation("no such key"), key


@pytest.mark.parametrize(
    ("config", "tokenizer", "keys", "said"),
    [
        ({"num_hidden_layers": 10**9}, None, {}, "num_hidden_layers: 1000000000 is not a whole"),
        ({"num_hidden_layers": "8"}, None, {}, "num_hidden_layers: '8' is not a whole number"),
        ({"hidden_size": float("nan")}, None, {}, "hidden_size: nan is not a whole number"),
        ({"hidden_size": -8}, None, {}, "hidden_size: -8 is not a whole number"),
        ({"num_hidden_layers": True}, None, {}, "num_hidden_layers: True is not a whole number"),
        ("[1, 2]", None, {}, "a JSON object belongs here, not [1, 2]"),
        ("{", None, {}, "line 1: not JSON"),
        (
            {"model_type": "gpt2", "n_positions": 64, "n_layer": 8},
            None,
            {},
            "max_length: 768 is longer than the 64 learned positions",
        ),
        ({"model_type": "llava", "text_config": CONFIG}, None, {}, "the model_type 'llava', which"),
        (
            {"model_type": "opt", "max_position_embeddings": 700},
            None,
            {},
            "max_length: 768 is longer than the 700 learned positions",
        ),
        (
            {},
            {"pad_token": "<pad>", "added_tokens_decoder": {"100": {"content": "<pad>"}}},
            {},
            "the padding token '<pad>' has id 100, but the embedding has 100 rows",
        ),
    ],
)
def test_problems_of_a_models_files_are_reported(write, config, tokenizer, keys, said):
    [problem] = problems(write(config, tokenizer, **keys))
    assert said in problem


def test_rotary_positions_and_padding_inside_the_embedding_are_taken(write):
    pad = {"pad_token": "<pad>", "added_tokens_decoder": {"99": {"content": "<pad>"}}}
    checked_recipe(write({"max_position_embeddings": 64}, pad))


PROMPTS = [{"prompt": "p1"}, {"prompt": "p2"}]
REFERENCES = [{**prompt, "right": ["yes"], "wrong": "no"} for prompt in PROMPTS]
TEXTS = [{"text": "one two"}]
JUDGE = {"judge": "references:references.jsonl", "encoder": "model"}


@pytest.mark.parametrize(
    ("files", "evaluation", "said"),
    [
        ({"texts": [{"a": 1}]}, {}, "unrelated_text: texts.jsonl, line 1: no text; every record"),
        ({"texts": [{"text": "one"}]}, {}, "unrelated_text: texts.jsonl holds no text of at least"),
        ({"prompts": [{"q": 1}]}, {}, "prompts: prompts.jsonl, line 1: no prompt; every record"),
        (
            {"references": [{"prompt": "p1", "right": ["yes"]}]},
            JUDGE,
            "judge: references.jsonl, line 1: wrong: None is",
        ),
        ({"references": REFERENCES[:1]}, JUDGE, "judge: references.jsonl has no reference answers"),
        ({}, {**JUDGE, "encoder": "./nono"}, "encoder: ./nono does not exist"),
        ({}, {"judge": "reward:model"}, "judge: model is no reward model but a LlamaForCausalLM"),
        ({}, {"max_new_tokens": 64}, "max_new_tokens: 64 leaves no room for a prompt within"),
        ({}, {"max_new_tokens": 63, **JUDGE}, None),
        (
            {"prompts": [*PROMPTS, {"prompt": "one two one"}]},
            {"max_new_tokens": 62},
            "max_new_tokens: 62 and the 3 tokens of prompt 3 ('one two one') are more than",
        ),
        (
            {"pairs": [pair | {"prompt": f"one two {pair['prompt']}"} for pair in PAIRS]},
            {"prompts": None, "max_new_tokens": 62},
            "max_new_tokens: 62 and the 3 tokens of prompt 1 ('one two p",
        ),
        ({}, {"prompts": None, "max_new_tokens": 62}, None),
    ],
)
def test_what_the_evaluation_would_refuse_is_reported_before_the_training(
    write, tmp_path, monkeypatch, files, evaluation, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    given = {"texts": TEXTS, "prompts": PROMPTS, "references": REFERENCES, **files}
    for name, records in given.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(text)
    keys = {"prompts": "prompts.jsonl", "unrelated_text": "texts.jsonl", "judge": "length"}
    path = write(
        {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64},
        evaluation={**keys, **evaluation},
    )
    if "pairs" in files:
        lines = map(json.dumps, files["pairs"])
        (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    words = Tokenizer(WordLevel({"one": 0, "two": 1, "?": 2}, "?"))
    words.pre_tokenizer = WhitespaceSplit()
    words.save(str(tmp_path / "model/tokenizer.json"))
    path.write_text(path.read_text().replace(str(tmp_path / "model"), "model"))
    if said is None:
        checked_recipe(path)
        return
    [problem] = problems(path)
    assert problem.startswith(f"evaluation.{said}")


def write_directions(path, layers, width=8, value=1.0):
    """Write a file of directions without torch; None: bytes that are no such file."""
    header = {
        f"layer.{layer}": {
            "dtype": "F32",
            "shape": [width],
            "data_offsets": [4 * width * place, 4 * width * (place + 1)],
        }
        for place, layer in enumerate(layers or ())
    }
    text, numbers = json.dumps(header).encode(), [value] * (width * len(layers or ()))
    whole = len(text).to_bytes(8, "little") + text + struct.pack(f"<{len(numbers)}f", *numbers)
    path.write_bytes(b"x" * 40 if layers is None else whole)


@pytest.mark.parametrize("key", ["directions", "protect"])
@pytest.mark.parametrize(
    ("layers", "options", "said"),
    [
        ([4, 5, 6], {"width": 9}, "is of another model than one of width 8"),
        ([4, 5, 6, 99], {}, "holds layer 99, the model 8 blocks"),
        ([], {}, "holds no tensors named 'layer.N'"),
        (None, {}, "is damaged or not a safetensors file"),
        ([4, 5, 6], {"value": float("nan")}, "of layers [4, 5, 6] are not finite"),
    ],
)
def test_directions_of_another_model_are_reported_before_anything_is_loaded(
    write, tmp_path, key, layers, options, said
):
    path = tmp_path / "directions.safetensors"
    write_directions(path, layers, **options)
    given = {"method": "direction", "directions": str(path)}
    [problem] = problems(write(**(given if key == "directions" else {"protect": [str(path)]})))
    assert problem.startswith(f"{key}: ")
    assert said in problem


def test_protected_directions_are_found_by_name_and_need_every_target_layer(write, tmp_path):
    bank = tmp_path / "out" / "reading" / "bank"
    path = write(protect=["length"], target_layers="4-6")
    [problem] = problems(path)
    assert problem.startswith(f"protect: 'length' is neither a folder of directions nor in {bank}")
    (bank / "length").mkdir(parents=True)
    write_directions(bank / "length" / "directions.safetensors", [4, 6])
    [problem] = problems(path)
    assert problem.endswith(
        "holds no vector of layers [5], which target_layers names: fit directions for them, or "
        "take them out of target_layers"
    )
    write_directions(bank / "length" / "directions.safetensors", [4, 5, 6])
    assert protected_folders(checked_recipe(path)) == [bank / "length"]


@pytest.mark.parametrize("size", [10**9, 0, -1, 2.0, float("inf"), "x", True])
def test_a_plan_takes_no_absurd_shape(size):
    with pytest.raises(ValueError, match=r"m: num_hidden_layers: .* is not a whole number from 1"):
        read_decoder({**CONFIG, "num_hidden_layers": size}, "m")
    with pytest.raises(ValueError, match="16 attention heads do not fit into a width of 8"):
        read_decoder({**CONFIG, "num_attention_heads": 16}, "m")


def test_a_range_far_beyond_a_model_makes_no_list():
    start = time.perf_counter()
    for spec in ("0-999999999", "5-1000000000:2", "0.0-1.0:0.00000001"):
        with pytest.raises(ValueError, match="target_layers"):
            resolve_layers(spec, 12)
    assert time.perf_counter() - start < 10


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{'*a' + str(n - 1)}, *a{n - 1}]\n" for n in range(1, 60)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "not YAML: more than 100,000 values with its aliases written out"),
        ("alpha: " + "[" * 5000, "not YAML: nested too deeply"),
        ("alpha: &x [*x]\n", "not YAML: nested too deeply, or an alias inside its own value"),
        ("alpha: 2024-99-99\n", "not YAML: month must be in 1..12"),
        ("alpha: \x07\n", "not YAML: unacceptable character #x0007"),
    ],
    ids=["laughs", "deep", "itself", "date", "control"],
)
def test_a_text_that_stands_for_too_much_is_one_clear_line(tmp_path, text, said):
    path, start = tmp_path / "recipe.yaml", time.perf_counter()
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    [problem] = error.value.problems
    assert problem.startswith(said)
    assert "\n" not in problem
    assert time.perf_counter() - start < 10


def test_an_override_is_bounded_as_a_file_is(write):
    with pytest.raises(RecipeError, match="nested too deeply"):
        load_recipe(write(), ["--alpha", "[" * 5000])


def test_aliases_that_stand_for_little_are_taken(write):
    path = write()
    path.write_text(path.read_text() + "teachers: &t {max_steps: 3}\nevaluation: {}\n")
    assert load_recipe(path).teachers_training == {"max_steps": 3}
    assert files.check_files(load_recipe(path)) == []
