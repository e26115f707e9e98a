"""Recipes: YAML, overrides, unknown keys, types, and the fields of TrainingArguments."""

import ast
import dataclasses
import importlib.util

import pytest
import yaml

from rahf.recipe import training_arguments
from rahf.recipe.data_options import DataOptions
from rahf.recipe.method_options import MethodOptions
from rahf.recipe.methods import METHODS
from rahf.recipe.model_options import ModelOptions
from rahf.recipe.other_names import REMOVED, REMOVED_CHOICES, REPLACED
from rahf.recipe.recipe import Recipe, RecipeError, load_recipe, recipe_from_dict
from rahf.recipe.shift_options import TeacherOptions
from rahf.recipe.trackers import trackers
from rahf.recipe.training_arguments import TRANSFORMERS_DEFAULTS, training_annotations

SMALL = {
    "model_name_or_path": "org/model",
    "dataset_name": "org/pairs",
    "output_dir": "out",
}


@pytest.fixture
def write(tmp_path):
    def write(text="", **keys):
        path = tmp_path / "recipe.yaml"
        path.write_text(text or yaml.safe_dump({**SMALL, **keys}), encoding="utf-8")
        return path

    return write


def problems(path, overrides=()):
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return error.value.problems


def test_a_small_recipe_gets_every_default(write):
    recipe = load_recipe(write())
    assert recipe.model == ModelOptions("org/model")
    assert recipe.data == DataOptions("org/pairs")
    assert recipe.method == MethodOptions(**METHODS["dual"].defaults)
    assert recipe.teachers == TeacherOptions()
    assert recipe.training == {"output_dir": "out"}
    assert recipe.teachers_training == {}


def test_a_recipe_is_frozen(write):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe(write()).training = {}


def test_a_recipe_as_run_reads_back_as_itself(write):
    recipe = load_recipe(
        write(
            method="scit",
            alpha=5,
            target_layers=[10, "12-18:2"],
            instructions={"positive": "Be kind: always.", "negative": "Be rude: always."},
            columns={"chosen": "rejected", "rejected": "chosen"},
            teachers={"label_smoothing": 0.0, "learning_rate": 2e-5},
            evaluation={"judge": None},
            learning_rate=1e-5,
            eval_strategy="no",
        )
    )
    assert recipe_from_dict(recipe.as_dict()) == recipe
    assert recipe_from_dict(yaml.safe_load(recipe.as_yaml())) == recipe


def test_a_recipe_as_run_holds_the_defaults_too(write):
    kept = load_recipe(write()).as_dict()
    assert kept["alpha"] == METHODS["dual"].defaults["alpha"]
    assert kept["teachers"]["label_smoothing"] == 0.2
    assert kept["evaluation"]["max_new_tokens"] == 48
    assert kept["output_dir"] == "out"


def test_empty_sections_have_their_defaults(write):
    recipe = load_recipe(write(teachers=None, evaluation=None))
    assert recipe.teachers == TeacherOptions()


def test_a_missing_recipe_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no recipe at .*nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_numbers_that_yaml_reads_as_text_are_numbers(write):
    path = write(
        "model_name_or_path: org/model\ndataset_name: org/pairs\noutput_dir: out\n"
        "learning_rate: 1e-4\nalpha: 1e1\nmax_steps: 1e2\nteachers: {learning_rate: 2e-5}\n"
    )
    recipe = load_recipe(path)
    assert recipe.training["learning_rate"] == 1e-4
    assert recipe.training["max_steps"] == 100
    assert recipe.method.alpha == 10.0
    assert recipe.teachers_training["learning_rate"] == 2e-5


def test_an_unquoted_no_is_the_strategy_of_that_name(write):
    path = write(
        "model_name_or_path: org/model\ndataset_name: org/pairs\noutput_dir: out\n"
        "eval_strategy: no\nsave_strategy: no\n"
    )
    training = load_recipe(path).training
    assert (training["eval_strategy"], training["save_strategy"]) == ("no", "no")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"alhpa": 2}, "alhpa: unknown key, did you mean alpha?"),
        ({"learning_rat": 1}, "learning_rat: unknown key, did you mean learning_rate?"),
        ({"evalution": {}}, "evalution: unknown key, did you mean evaluation?"),
        ({"xyzzy": 2}, "xyzzy: unknown key"),
        ({"teachers": {"postive": "x"}}, "teachers.postive: unknown key, did you mean positive?"),
        ({"teachers": {"learnin_rate": 1}}, "did you mean learning_rate?"),
        ({"teachers": {"alpha": 1}}, "teachers.alpha: belongs to the top level"),
        ({"evaluation": {"prompt": "x"}}, "evaluation.prompt: unknown key, did you mean prompts?"),
        ({"evaluation": {"seed": 1}}, "evaluation.seed: unknown key"),
        ({"label_smoothing": 0.1}, "label_smoothing: belongs under teachers"),
        ({"torch_dtype": "float32"}, "torch_dtype: is not a key of a recipe: use dtype"),
        ({3: 4}, "3: a key must be text, not 3"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(write, keys, said):
    path = write(yaml.safe_dump({**SMALL, **keys}, sort_keys=False))
    [problem] = problems(path)
    assert problem.startswith(said) or said in problem


@pytest.mark.parametrize("name", sorted(REPLACED))
def test_a_field_that_transformers_has_dropped_comes_with_its_replacement(write, name):
    assert name not in training_annotations()
    assert problems(write(**{name: True})) == (
        f"{name}: is not a key of a recipe: {REPLACED[name]}",
    )


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_is_refused_with_what_to_do_instead(write, key):
    [problem] = problems(write(**{key: 1}))
    assert problem == f"{key}: is no longer a key of a recipe: {REMOVED[key].advice}"


@pytest.mark.parametrize("removed", REMOVED_CHOICES)
def test_a_removed_choice_is_refused_with_what_to_do_instead(write, removed):
    key, _, value = removed.partition(": ")
    [problem] = problems(write(**{key: value}))
    assert problem == f"{key}: {value} is no longer a choice: {REMOVED_CHOICES[removed]}"


def test_the_values_before_a_key_was_recorded_are_the_general_defaults(write):
    known = load_recipe(write()).defaults()
    general = MethodOptions()
    keys = ("alpha", "response_source", "sft_weight", "align_weight", "dpo_weight")
    assert {key: known[key] for key in keys} == {key: getattr(general, key) for key in keys}


def test_a_removed_key_had_no_effect_at_what_its_method_does_today(write):
    assert load_recipe(write()).defaults()["kl_temperature"] == 1.0
    assert load_recipe(write(method="repbend")).defaults()["kl_temperature"] == 2.0


def test_a_removed_choice_names_the_one_to_take(write):
    [problem] = problems(write(positions="predicting"))
    assert "set response_and_tail" in problem


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a number"),
        ({"learning_rate": -1}, "learning_rate: -1 is out of range"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is not a finite number"),
        ({"max_steps": 2.5}, "max_steps: 2.5 is not a whole number"),
        ({"bf16": "yes please"}, "bf16: 'yes please' is not true or false"),
        ({"run_name": 12}, "run_name: 12 is not text or null (put it in quotes)"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type: 'cosin' is not one of linear, cosine"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: 0 is out of range"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16 are both true"),
        ({"hub_token": "x"}, "hub_token: remove it"),
        ({"output_dir": None}, "output_dir: is missing"),
        ({"model_name_or_path": 3}, "model_name_or_path: 3 is not text"),
        ({"model_name_or_path": ""}, "model_name_or_path: is empty text"),
        ({"alpha": "strong"}, "alpha: 'strong' is not a number"),
        ({"teachers": [1]}, "teachers: [1] is not a mapping"),
        ({"teachers": {"output_dir": "x"}}, "teachers.output_dir: remove it"),
        ({"teachers": {"hub_token": "x"}}, "teachers.hub_token: remove it"),
        ({"teachers": {"max_steps": "x"}}, "teachers.max_steps: 'x' is not a whole number"),
        ({"teachers": {"label_smoothing": 1}}, "teachers.label_smoothing: 1 is out of range"),
        ({"teachers": {"contrast": "x"}}, "teachers.contrast: not read by method dual"),
        (
            {"evaluation": {"judge": "me"}},
            "evaluation.judge: 'me' is not one of lexicon, length",
        ),
        (
            {"eval_strategy": "steps", "dataset_test_split": None, "test_share": 0},
            "eval_strategy: steps needs",
        ),
        ({"target_layers": "automatic"}, "target_layers: 'automatic' is not a block number"),
        ({"method": "direction"}, "method: direction needs directions"),
    ],
)
def test_a_wrong_value_is_the_only_problem(write, keys, said):
    [problem] = problems(write(**keys))
    assert problem.startswith(said)


def test_required_keys_are_reported_when_missing(write):
    told = problems(write("seed: 1\n"))
    assert [line.partition(":")[0] for line in told] == [
        "model_name_or_path",
        "no data",
        "output_dir",
    ]


def test_all_problems_are_reported_at_once(write):
    path = write(
        "alpha: two\nalpha: 3\nmethod: duel\nreference: contrast\nwarmup_ratio: 0.1\n"
        "load_in_4bit: true\nload_in_8bit: true\nmax_steps: x\nteachers: {postive: 3}\n"
    )
    told = "\n".join(problems(path, ["--sead", "1", "loose"]))
    for part in [
        "line 2: alpha is given twice, first on line 1",
        "'loose': unexpected",
        "sead: unknown key, did you mean seed?",
        "method: 'duel'",
        "warmup_ratio: is not",
        "load_in_4bit and load_in_8bit",
        "max_steps: 'x'",
        "teachers.postive",
        "model_name_or_path: is missing",
        "no data",
        "output_dir: is missing",
    ]:
        assert part in told
    # `contrast` may well be right for the method that was misspelt.
    assert "reference" not in told


def test_the_message_names_the_file_and_lists_a_problem_a_line(write):
    path = write(alhpa=1, sead=2)
    with pytest.raises(ValueError, match="2 problems") as error:
        load_recipe(path)
    first, *lines = str(error.value).splitlines()
    assert first == f"{path}: 2 problems"
    assert lines == [f"- {problem}" for problem in error.value.problems]


def test_equal_keys_are_reported_with_both_lines(write):
    path = write("seed: 1\nteachers:\n  seed: 2\n  max_steps: 3\n  seed: 4\nseed: 5\n")
    told = problems(path)
    assert "line 5: seed is given twice, first on line 3" in told
    assert "line 6: seed is given twice, first on line 1" in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alpha: [1, 2\nseed: 3\n", "line 2, column 5: not YAML"),
        ("alpha: 1\n\tseed: 3\n", "line 2, column 1: not YAML"),
        ("- alpha\n- seed\n", "a recipe is a mapping"),
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("alpha: !!python/object:os.system {}\n", "line 1, column 8: not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_reported_with_its_line(tmp_path, text, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    [problem] = problems(path)
    assert said in problem


def test_a_recipe_that_is_not_utf8_is_reported(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"run_name: \xff\n")
    assert problems(path) == ("byte 10: not UTF-8 text",)


def test_overrides_of_the_command_line(write):
    recipe = load_recipe(
        write(alpha=1, teachers={"seed": 3}),
        [
            *("--alpha", "-2.5"),
            *("--dpo_weight", "0"),
            "--teachers.learning_rate=1e-4",
            *("--teachers.positive", "out/positive"),
            "--bf16",
            *("--max-steps", "7"),
            *("--target_layers", "[3, 0.5]"),
            *("--run_name", "a: b"),
            *("--model_revision", "007"),
            *("--attn_implementation", "null"),
            *("--instructions.positive", "Good: yes"),
            *("--instructions.negative", "Bad: yes"),
            *("--accelerator_config.even_batches", "false"),
        ],
    )
    assert recipe.method.alpha == -2.5
    assert recipe.teachers_training == {"seed": 3, "learning_rate": 1e-4}
    assert recipe.teachers.positive == "out/positive"
    assert recipe.training["bf16"] is True
    assert recipe.training["max_steps"] == 7
    assert recipe.method.target_layers == [3, 0.5]
    assert recipe.training["run_name"] == "a: b"
    assert recipe.model.model_revision == "007"
    assert recipe.model.attn_implementation is None
    assert recipe.method.instructions == {"positive": "Good: yes", "negative": "Bad: yes"}
    assert recipe.training["accelerator_config"] == {"even_batches": False}


def test_overrides_as_a_mapping(write):
    recipe = load_recipe(write(), {"alpha": 3.0, "teachers.learning_rate": 1e-4})
    assert recipe.method.alpha == 3.0
    assert recipe.teachers_training == {"learning_rate": 1e-4}


def test_the_last_of_two_equal_overrides_counts(write):
    assert load_recipe(write(), ["--alpha", "3", "--alpha=4"]).method.alpha == 4


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["alpha", "3"], "'alpha': unexpected on the command line"),
        (["--alpha", "3", "4"], "'4': unexpected on the command line"),
        (["--alpha", "[1"], "--alpha [1: line 1"),
        (["--alpha.x", "1"], "alpha: {'x': 1} is not a number"),
        (["--output_dir.x", "1"], "--output_dir.x: output_dir is 'out', which has no keys"),
        (["--alhpa", "3"], "alhpa: unknown key, did you mean alpha?"),
    ],
)
def test_a_wrong_override_is_reported(write, tokens, said):
    assert problems(write(), tokens)[0].startswith(said)


def test_stages_are_the_teachers_to_train_the_directions_the_alignment_and_the_evaluation(write):
    def stages(**keys):
        return load_recipe(write(**keys)).stages

    last = ("alignment", "evaluation")
    assert stages() == ("positive", "negative", "directions", *last)
    assert stages(shift="token") == ("positive", "negative", *last)
    assert stages(shift="token", teachers={"positive": "x"}) == ("negative", *last)
    assert stages(shift="token", method="scit") == ("contrast", *last)
    assert stages(shift="token", method="dpo_shift") == ("preferred", *last)
    assert stages(shift="token", method="lorra") == last
    assert stages(method="direction", directions="x") == last


def test_teachers_take_over_the_training_keys_that_they_do_not_give(write):
    recipe = load_recipe(
        write(
            seed=3,
            bf16=True,
            learning_rate=1e-5,
            push_to_hub=True,
            run_name="run",
            teachers={"learning_rate": 1e-4},
        )
    )
    assert recipe.teacher_training == {"seed": 3, "bf16": True, "learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("top", "own"),
    [
        ({"max_steps": 24}, {"num_train_epochs": 2}),
        ({"num_train_epochs": 3}, {"max_steps": 16}),
    ],
)
def test_the_length_of_teachers_is_theirs_in_whichever_unit(write, top, own):
    assert load_recipe(write(**top, teachers=own)).teacher_training == own
    assert load_recipe(write(**top)).teacher_training == top


def test_a_recipe_with_problems_is_partly_there_for_further_checks(write):
    with pytest.raises(RecipeError) as error:
        load_recipe(write(alpha="x", target_layers=99, reference="contrast"))
    assert isinstance(error.value.partial, Recipe)
    assert error.value.partial.method.target_layers == 99


def test_training_fields_are_those_of_the_installed_transformers():
    transformers = pytest.importorskip("transformers")
    actual = {spec.name for spec in dataclasses.fields(transformers.TrainingArguments) if spec.init}
    assert {name for name in actual if not name.startswith("_")} == training_annotations().keys()


def test_the_defaults_of_transformers_that_are_read_without_it_are_its_own():
    transformers = pytest.importorskip("transformers")
    actual = {
        spec.name: spec.default for spec in dataclasses.fields(transformers.TrainingArguments)
    }
    assert {name: actual[name] for name in TRANSFORMERS_DEFAULTS} == TRANSFORMERS_DEFAULTS


def test_training_fields_have_their_types():
    annotations = training_annotations()
    assert annotations["weight_decay"].__origin__ is float
    assert annotations["max_steps"].__origin__ is int
    assert annotations["bf16"] is bool
    assert annotations["run_name"] == str | None
    assert "cosine" in annotations["lr_scheduler_type"].__args__


def test_no_option_has_the_name_of_a_training_field():
    ours = [ModelOptions, DataOptions, MethodOptions, TeacherOptions]
    names = {spec.name for section in ours for spec in dataclasses.fields(section)}
    assert not names & training_annotations().keys()


@pytest.fixture
def fresh_annotations():
    training_annotations.cache_clear()
    yield
    training_annotations.cache_clear()


@pytest.mark.usefixtures("fresh_annotations")
def test_without_transformers_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="transformers is not installed"):
        training_annotations()


@pytest.mark.usefixtures("fresh_annotations")
def test_a_transformers_without_the_file_is_reported(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_loader("transformers", None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(RuntimeError, match=r"training_args.py does not exist"):
        training_annotations()


@pytest.mark.usefixtures("fresh_annotations")
def test_every_form_of_annotation_is_read(monkeypatch, tmp_path):
    (tmp_path / "trainer_utils.py").write_text("class Kind(E):\n    NO = 'no'\n    YES = 'yes'\n")
    (tmp_path / "training_args.py").write_text(
        "class TrainingArguments:\n"
        "    a: Optional[int] = None\n"
        "    b: Union[str, list[str]] = None\n"
        "    c: Kind | str = 'no'\n"
        "    d: Something = None\n"
        "    e: Literal[False] | str = False\n"
        "    f: dict[str, Any] | None = None\n"
        "    _g: int = 0\n"
        "    h = 3\n"
    )
    monkeypatch.setattr(
        training_arguments,
        "parse_source",
        lambda name: ast.parse((tmp_path / name).read_text()),
    )
    found = training_annotations()
    assert list(found) == ["a", "b", "c", "d", "e", "f"]
    assert found["a"] == int | None
    assert found["b"] == str | list
    assert found["c"].__args__ == ("no", "yes")
    assert found["d"] is training_arguments.Any
    assert found["f"] == dict | None


@pytest.mark.parametrize("size", [1, 7])
def test_a_batch_that_tears_a_pair_apart_is_refused(write, size):
    keys = {
        "method": "scit",
        "per_device_train_batch_size": size,
        "pairs_together": True,
        "response_source": "both",
    }
    (line,) = problems(write(**keys))
    assert line == (
        f"per_device_train_batch_size: {size} is odd, and pairs_together: true needs both "
        "responses of a pair in one batch: set it to "
        f"{size + 1}, or pairs_together: false"
    )
    for right in ({"pairs_together": False}, {"per_device_train_batch_size": size + 1}):
        assert load_recipe(write(**{**keys, **right}))


def test_a_dual_recipe_that_never_named_pairs_is_reported_where_an_even_batch_comes_from(write):
    (line,) = problems(write(per_device_train_batch_size=3))
    assert line == (
        "per_device_train_batch_size: 3 is odd, and pairs_together: true (default of dual) needs "
        "both responses of a pair in one batch: set it to 4, or pairs_together: false and "
        "dpo_weight: 0"
    )
    keys = {"per_device_train_batch_size": 3, "pairs_together": False, "dpo_weight": 0}
    assert load_recipe(write(**keys)).method.dpo_weight == 0


def test_held_out_batches_that_tear_a_pair_apart_are_refused_beside_a_dpo_term(write):
    keys = {"per_device_eval_batch_size": 3, "pairs_together": True, "dpo_weight": 1.0}
    (line,) = problems(write(**keys))
    assert line == (
        "per_device_eval_batch_size: 3 is odd, and dpo_weight: 1.0 (default of dual) needs both "
        "responses of a pair in one batch: set it to 4, or dpo_weight: 0"
    )
    for right in ({"per_device_eval_batch_size": 4}, {"dpo_weight": 0.0}):
        assert load_recipe(write(**{**keys, **right}))


def test_the_trackers_are_those_of_transformers():
    installed = pytest.importorskip("transformers.integrations.integration_utils")
    assert set(trackers()) == set(installed.INTEGRATION_TO_CALLBACK)


@pytest.mark.parametrize("given", ["wandbb", ["tensorboard", "paper"], ["all", "wandb"], None])
def test_an_unknown_tracker_is_refused(write, given):
    (line,) = problems(write(report_to=given))
    assert line.startswith("report_to: ")
    assert "is not a tracker of transformers: give one or more of azure_ml" in line
    (line,) = problems(write(teachers={"report_to": given}))
    assert line.startswith("teachers.report_to: ")


@pytest.mark.parametrize("given", ["none", "all", "wandb", ["tensorboard", "wandb"], ["none"], []])
def test_trackers_that_are_known_are_taken(write, given):
    assert load_recipe(write(report_to=given)).training["report_to"] == given
