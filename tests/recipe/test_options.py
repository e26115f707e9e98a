"""Options: limits, choices, combinations, and what target_layers means."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from rahf.recipe.data_options import DataOptions
from rahf.recipe.evaluation_options import EvaluationOptions
from rahf.recipe.fields import OptionError, coerce, fits
from rahf.recipe.layers import resolve_layers
from rahf.recipe.method_options import MethodOptions
from rahf.recipe.methods import DEFAULT_INSTRUCTIONS, METHODS, with_defaults
from rahf.recipe.model_options import ModelOptions
from rahf.recipe.reference import as_markdown, as_text
from rahf.recipe.shift_options import TeacherOptions

SECTIONS = [ModelOptions, DataOptions, MethodOptions, TeacherOptions, EvaluationOptions]


AWAY = {"method": "rmu", "layer_scale": "none"}


def data(**options):
    return DataOptions(**{"dataset_name": "org/pairs", **options})


def test_defaults_of_every_section_are_valid():
    assert ModelOptions("org/model").lora_r == 8
    assert data().dataset_train_split == "train"
    assert MethodOptions().method == "dual"
    assert TeacherOptions().label_smoothing == 0.2
    assert EvaluationOptions().judge == "lexicon"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_option_has_help_that_is_a_sentence(section):
    for spec in dataclasses.fields(section):
        assert spec.metadata["help"].endswith("."), spec.name


@pytest.mark.parametrize("section", [ModelOptions, DataOptions, TeacherOptions, EvaluationOptions])
def test_sections_are_frozen(section):
    assert section.__dataclass_params__.frozen


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "duel"}, "method: 'duel' is not one of dual, scit, dpo_shift, lorra"),
        ({"weights_over_time": "cosine"}, "is not one of constant, crossing"),
        ({"alpha": "2"}, "alpha: '2' is not a number or one of auto"),
        ({"alpha": True}, "alpha: True is not a number or one of auto"),
        ({"alpha": float("nan")}, "alpha: nan is not a finite number"),
        ({"alpha": 0}, "alpha: 0 leaves every state"),
        (
            {"max_response_tokens": 0},
            "max_response_tokens: 0 is out of range, it must be at least 1",
        ),
        ({"max_response_tokens": 2.5}, "max_response_tokens: 2.5 is not a whole number"),
        ({"tail_tokens": 0}, "tail_tokens: 0 is out of range"),
        ({"retain_weight": -1}, "retain_weight: -1 is out of range"),
        ({"kl_weight": -0.1}, "kl_weight: -0.1 is out of range"),
        ({"sft_weight": float("inf")}, "sft_weight: inf is not a finite number"),
        ({"dpo_weight": -1}, "dpo_weight: -1 is out of range"),
        ({"dpo_beta": 0}, "dpo_beta: 0 is out of range"),
        ({"distance": "l1"}, "distance: 'l1' is not one of l2, squared_l2"),
        ({"layer_scale": None}, "layer_scale: None is not one of none, rms, shift"),
        ({"positions": "all"}, "positions: 'all' is not one of"),
        ({"shift": "median"}, "shift: 'median' is not one of token, mean"),
        ({"directions": ""}, "directions: is empty text"),
        ({"target_layers": "automatic"}, "target_layers: 'automatic' is not a block number"),
    ],
)
def test_a_wrong_value_is_reported_with_its_name(options, said):
    with pytest.raises(ValueError) as error:
        MethodOptions(**options)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reference": "contrast"}, "reference: contrast is a teacher of method scit, not of dual"),
        ({"method": "scit", "reference": "positive"}, "positive is a teacher of method dual"),
        ({"method": "lorra", "reference": "positive"}, "not of lorra: set reference: base"),
        ({"method": "direction"}, "method: direction needs directions"),
        ({"directions": "x"}, "directions: not read by method dual"),
        ({"retain_weight": 0.5, "retain_rows": 0}, "retain_weight: 0.5 needs texts"),
        ({"kl_weight": 1, "kl_rows": "retain", "retain_rows": 0}, "kl_rows: retain needs texts"),
        (
            {"retain_dataset_name": "x.jsonl", "retain_weight": 0},
            "retain_dataset_name: read by no term",
        ),
        ({"method": "scit", "instructions": {"positive": "a"}}, "given: positive"),
        ({"rejected_weight": 2.0}, "rejected_weight: 2.0 is not read by method dual"),
        ({"method": "lorra", "chosen_weight": 1.0}, "chosen_weight: 1.0 is not read by method"),
        ({"similarity_weight": 1.0}, "similarity_weight: 1.0 is not read by method dual"),
        ({"weights_over_time": "crossing"}, "weights_over_time: crossing is not read by method"),
        ({"method": "rmu"}, "layer_scale: shift is the size of a shift that rmu does not have"),
        ({**AWAY, "response_source": "chosen"}, "response_source: chosen leaves rmu no rejected"),
        ({**AWAY, "align_weight": 0}, "align_weight: 0 is not read by method rmu"),
        ({**AWAY, "alpha": "auto"}, "alpha: auto is chosen for a shift"),
        ({**AWAY, "target_layers": "auto"}, "target_layers: auto is chosen for a shift"),
        ({**AWAY, "reference": "positive"}, "not of rmu: set reference: base"),
        ({**AWAY, "directions": "x"}, "directions: not read by method rmu"),
        ({**AWAY, "method": "repbend"}, "similarity_weight: 0 leaves repbend without a"),
        ({**AWAY, "protect": ["x"]}, "protect: is removed from a shift, and method rmu has none"),
        ({"protect": ["x", "x"]}, "protect: names a direction twice"),
        ({"protect": ["x", " "]}, "protect: should be a list of folders or names"),
        ({"protect_weight": 2.0}, "protect_weight: 2.0 is not read without protect"),
        ({"method": "lorra", "instructions": {}}, "given: nothing"),
        ({"method": "scit", "instructions": {"positive": "a", "negative": " "}}, "not empty"),
        ({"method": "scit", "instructions": {"positive": "a", "negative": "a "}}, "the same text"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said):
    with pytest.raises(ValueError) as error:
        MethodOptions(**options)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "keys", "cure"),
    [
        (
            {"method": "lorra", "alpha": -2},
            ("alpha: -2 ", "sft_weight: 2.0 (default of lorra)"),
            {"sft_weight": 0, "response_source": "both"},
        ),
        (
            {"method": "scit", "alpha": -2, "sft_weight": 1},
            ("alpha: -2 ", "sft_weight: 1 "),
            {"sft_weight": 0, "response_source": "both"},
        ),
        (
            {"method": "dual", "alpha": -2},
            ("alpha: -2 ", "dpo_weight: 1.0 (default of dual)"),
            {"dpo_weight": 0},
        ),
        (
            {"method": "dual", "response_source": "chosen"},
            ("pairs_together: true (default of dual)", "response_source: chosen "),
            {"pairs_together": False, "dpo_weight": 0},
        ),
        (
            {"method": "scit", "pairs_together": True},
            ("pairs_together: true ", "response_source: chosen (default of scit)"),
            {"response_source": "both"},
        ),
        (
            {"method": "dual", "pairs_together": False},
            ("dpo_weight: 1.0 (default of dual)", "pairs_together: false "),
            {"dpo_weight": 0},
        ),
        (
            {"method": "dpo_shift", "dpo_weight": 1},
            ("dpo_weight: 1 ", "pairs_together: false "),
            {"pairs_together": True},
        ),
        (
            {"method": "scit", "response_source": "rejected"},
            ("sft_weight: 2.0 (default of scit)", "response_source: rejected "),
            {"sft_weight": 0},
        ),
        (
            {"method": "rmu", "chosen_weight": 1},
            ("chosen_weight: 1 ", "response_source: rejected (default of rmu)"),
            {"response_source": "both"},
        ),
    ],
    ids=str,
)
def test_a_clash_names_both_keys_whose_default_one_is_and_what_to_set(given, keys, cure):
    with pytest.raises(OptionError) as error:
        made(given)
    [line] = error.value.problems
    said, _, advice = line.partition(": set ")
    assert all(key in f"{said} " for key in keys)
    for key, value in cure.items():
        assert f"{key}: {str(value).lower()}" in advice
    made(given | cure)


def made(given):
    """Build the options of a recipe's keys, on top of the defaults of their method."""
    whole, known = with_defaults(given), {spec.name for spec in dataclasses.fields(MethodOptions)}
    return MethodOptions(**{key: value for key, value in whole.items() if key in known})


@pytest.mark.parametrize(
    "given",
    [
        *({"method": name} for name in METHODS if name != "direction"),
        {"method": "lorra", "alpha": "auto"},
        {"method": "dual", "alpha": "auto"},
        {"method": "dual", "reference": "positive"},
        {"method": "dual", "sft_weight": 2},
        {"method": "scit", "response_source": "random"},
        {"method": "lorra", "alpha": -2, "sft_weight": 0},
    ],
    ids=str,
)
def test_what_is_given_beside_the_defaults_of_a_method_holds(given):
    options = made(given)
    known = {spec.name for spec in dataclasses.fields(MethodOptions)}
    whole = METHODS[given["method"]].defaults | given
    for key in known & whole.keys():
        assert getattr(options, key) == whole[key], key


@pytest.mark.parametrize(
    "options",
    [
        {"reference": "positive"},
        {"method": "scit", "reference": "contrast"},
        {"method": "lorra"},
        {"method": "direction", "directions": "x"},
        {"alpha": -1},
        {"alpha": "auto", "target_layers": "auto"},
        {"shift": "mean"},
        {"retain_weight": 0.5, "retain_dataset_name": "x.jsonl"},
        {"kl_weight": 1, "kl_rows": "retain", "retain_dataset_name": "x.jsonl"},
        {"instructions": {}},
        AWAY,
        {**AWAY, "method": "circuit_breakers", "weights_over_time": "crossing"},
        {**AWAY, "method": "repbend", "similarity_weight": 0.1, "layer_scale": "rms"},
        {"target_layers": [3, "5-7", 0.9]},
    ],
)
def test_options_that_go_together_are_accepted(options):
    MethodOptions(**options)


def test_all_problems_of_a_section_are_reported_at_once():
    with pytest.raises(OptionError) as error:
        MethodOptions(reference="contrast", alpha=0, target_layers="9-3")
    assert [line.partition(":")[0] for line in error.value.problems] == [
        "reference",
        "alpha",
        "target_layers",
    ]


def test_method_options_are_checked_inside_a_class_that_inherits_them():
    @dataclasses.dataclass
    class Base:
        seed: int = 42
        ready: bool = False

        def __post_init__(self):
            self.ready = True

    @dataclasses.dataclass
    class Both(MethodOptions, Base):
        def __post_init__(self):
            self.check_method()
            Base.__post_init__(self)

    assert Both(alpha=3, seed=1).ready
    with pytest.raises(ValueError, match="alpha: 0 leaves"):
        Both(alpha=0)


def test_the_metadata_of_an_option_holds_nothing_that_argparse_does_not_take():
    # The parsers of transformers and TRL hand the metadata of a field to argparse as it is.
    for section in SECTIONS:
        assert all(set(spec.metadata) == {"help"} for spec in dataclasses.fields(section))


def test_the_parser_of_transformers_reads_the_options_of_the_method():
    from transformers import HfArgumentParser

    parser = HfArgumentParser(MethodOptions)
    [defaults] = parser.parse_args_into_dataclasses([])
    assert defaults == MethodOptions()
    [given] = parser.parse_args_into_dataclasses(["--alpha", "3", "--target_layers", "3-5"])
    assert (given.alpha, given.target_layers) == (3.0, "3-5")


def test_default_instructions_are_two_texts_of_one_form():
    positive, negative = (DEFAULT_INSTRUCTIONS[side].split() for side in ("positive", "negative"))
    assert positive != negative
    assert len(positive) == len(negative)
    assert MethodOptions().instructions == DEFAULT_INSTRUCTIONS
    assert MethodOptions().instructions is not DEFAULT_INSTRUCTIONS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float64"}, "dtype: 'float64' is not one of auto, float32"),
        ({"lora_r": 0}, "lora_r: 0 is out of range"),
        (
            {"lora_dropout": 1.0},
            "lora_dropout: 1.0 is out of range, it must be at least 0 and below 1",
        ),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit"),
        ({"trust_remote_code": "yes"}, "trust_remote_code: 'yes' is not true or false"),
        ({"lora_target_modules": 3}, "lora_target_modules: 3 is not a list or text or null"),
        ({"lora_target_modules": "*_proj"}, r"lora_target_modules: '\*_proj' is not a regular exp"),
    ],
)
def test_wrong_model_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ModelOptions("org/model", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset_name": None}, "no data: give dataset_name"),
        ({"datasets": [{"path": "x"}]}, "dataset_name and datasets are both given"),
        ({"max_length": 256}, "max_prompt_length: 256 leaves no room"),
        ({"columns": {"chossen": "a"}}, "columns: 'chossen': 'a' does not map"),
        ({"columns": {"chosen": 3}}, "columns: 'chosen': 3 does not map"),
        ({"dataset_num_proc": 0}, "dataset_num_proc: 0 is out of range"),
    ],
)
def test_wrong_data_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        data(**options)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "datasets: the list is empty"),
        (["x"], r"datasets\[0\]: 'x' is not a mapping"),
        ([{"path": "x"}, {"name": "a"}], r"datasets\[1\]: path is missing"),
        ([{"path": "x", "fractoin": 1}], "unknown key 'fractoin'"),
        ([{"path": "x", "fraction": 0}], "fraction: 0 is out of range"),
        ([{"path": "x", "fraction": 1.5}], "fraction: 1.5 is out of range"),
        ([{"path": "x", "fraction": "all"}], "fraction: 'all' is not a number"),
        ([{"path": "x", "columns": {"a": "b"}}], r"datasets\[0\].columns: 'a'"),
    ],
)
def test_a_wrong_mixture_is_refused_with_its_position(parts, said):
    with pytest.raises(ValueError, match=said):
        data(dataset_name=None, datasets=parts)


def test_columns_of_a_mixture_are_inside_its_entries():
    with pytest.raises(ValueError, match="columns does not apply to a mixture"):
        data(dataset_name=None, datasets=[{"path": "x"}], columns={"chosen": "a"})
    data(dataset_name=None, datasets=[{"path": "x", "columns": {"chosen": "a"}, "fraction": 1}])


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        (3, (3,)),
        ("3", (3,)),
        (0, (0,)),
        (0.5, (5,)),
        ("0.5", (5,)),
        (".5", (5,)),
        ("2-4", (2, 3, 4)),
        (" 2 - 4 ", (2, 3, 4)),
        ("2-8:3", (2, 5, 8)),
        ("2-9:3", (2, 5, 8)),
        ("0.2-0.5", (2, 3, 4, 5)),
        ("0.0-1.0:0.5", (0, 5, 10)),
        ("0.3-0.6:0.1", (3, 4, 5, 6)),
        ("0.2-0.8:2", (2, 4, 6, 8)),
        ("8,2,4", (2, 4, 8)),
        ([8, 2, 2], (2, 8)),
        ((8, 2), (2, 8)),
        ([1, "3-4", 0.9, "6,7"], (1, 3, 4, 6, 7, 9)),
        ("4-4", (4,)),
        (1e-5, (0,)),
    ],
)
def test_target_layers_of_eleven_blocks(spec, layers):
    assert resolve_layers(spec, 11) == layers


def test_a_fraction_is_exact_where_binary_numbers_are_not():
    # 0.1 + 0.2 is above 0.3 in binary: the last step of the range must not be lost.
    assert resolve_layers("0.1-0.3:0.1", 11) == (1, 2, 3)


def test_halves_between_two_blocks_go_to_the_even_one():
    assert resolve_layers(0.5, 2) == (0,)
    assert resolve_layers(0.5, 4) == (2,)


@pytest.mark.parametrize("spec", [11, "5-11", [2, 40], "2-40:2"])
def test_a_block_beyond_the_model_is_refused_with_the_last_valid_one(spec):
    with pytest.raises(ValueError, match=r"the model has 11 blocks, .* the last one is 10"):
        resolve_layers(spec, 11)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (-1, "-1 is negative"),
        ("-3", "-3 is negative"),
        (1.0, "1.0 is neither a block number"),
        ("1.0", "1.0 is neither a block number"),
        (0.0, "0.0 is neither a block number"),
        (1.5, "1.5 is neither a block number"),
        (True, "True is not a block number"),
        (None, "None is not a block number"),
        ("auto", "auto is chosen by the stage"),
        ("", "'' is not a block number"),
        ("3,,4", "'' is not a block number"),
        ([], "the list is empty"),
        ([[3]], r"\[3\] is not a block number"),
        ("9-3", "9-3 runs backwards"),
        ("0.7-0.3", "runs backwards"),
        ("0.5-9", "mixes a block number and a fraction"),
        ("0.5-1.5", "above 1.0"),
        ("3-9:0", "has the step 0"),
        ("3-9:0.5", "has the step 0.5"),
        ("0.3-0.9:0.0", "has the step 0.0"),
        (float("nan"), "'nan' is not a block number"),
    ],
)
def test_a_meaningless_layer_specification_is_refused(spec, said):
    with pytest.raises(ValueError, match=said):
        resolve_layers(spec, 11)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("1e-4", float, 1e-4),
        ("1e3", int, 1000),
        (10.0, int, 10),
        (10.5, int, 10.5),
        (3, float, 3),
        ("1e-4", str, "1e-4"),
        ("1e-4", str | None, "1e-4"),
        ("2e-5", float | None, 2e-5),
        ("fast", float, "fast"),
        (False, str, False),
        (1, bool, 1),
    ],
)
def test_yaml_values_are_taken_as_the_type_that_is_wanted(value, annotation, expected):
    found = coerce(value, annotation)
    assert found == expected
    assert type(found) is type(expected)


def test_a_bool_is_not_a_number():
    assert not fits(True, int)
    assert not fits(True, float)
    assert fits(True, bool)
    assert not fits(1, bool)


def test_the_reference_in_docs_is_up_to_date():
    path = Path(__file__).parents[2] / "docs" / "recipe.md"
    assert path.read_text(encoding="utf-8") == as_markdown() + "\n", (
        "run: python -m rahf.recipe.reference > docs/recipe.md"
    )


def test_the_reference_is_printed_by_the_module():
    printed = subprocess.run(
        [sys.executable, "-m", "rahf.recipe.reference"], capture_output=True, text=True, check=True
    )
    assert printed.stdout == as_markdown() + "\n"


def test_the_reference_names_every_key():
    for section in SECTIONS:
        for spec in dataclasses.fields(section):
            assert f"`{spec.name}`" in as_markdown()
            assert f"{spec.name} (default: " in as_text()
