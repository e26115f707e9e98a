"""A recipe's stages on a tiny model: complete folders, skipping, resuming, refusing."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from rahf.artifacts import read_lines
from rahf.cli import main
from rahf.distributed.sharding import check_world
from rahf.evaluation.intervals import share_estimate
from rahf.pipeline.recipe_data import describe_data
from rahf.pipeline.run import results_text, run_pipeline, stage_record
from rahf.recipe.files import checked_recipe
from rahf.trainer import RAHFTrainer

MODELS = ("base", "positive", "negative", "policy")
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} "
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}w39 {% endif %}{% endfor %}"
)


def test_a_recipe_leaves_a_complete_folder_for_every_stage(recipe_file):
    run_pipeline(checked_recipe(recipe_file))
    out = Path("out")
    for folder in ("", "teachers/positive", "teachers/negative"):
        assert (out / folder / "adapter_model.safetensors").exists()
        assert (out / folder / "log.jsonl").exists()
        assert json.loads((out / folder / "stage.json").read_text())["complete"]
    for name in ("README.md", "metrics.json", "recipe.yaml", "training.png", "log.jsonl"):
        assert (out / name).stat().st_size > 0
    answers = read_lines(out / "evaluation/answers.jsonl")
    assert [list(answer["answers"]) for answer in answers] == [list(MODELS)] * 3
    assert all(set(answer["scores"]) == set(MODELS) for answer in answers)
    assert not list(out.rglob("*.bin"))
    AutoPeftModelForCausalLM.from_pretrained(out)


def test_the_chat_template_of_a_recipe_is_saved_with_every_adapter(recipe_file):
    overrides = {"chat_template": TEMPLATE, "max_steps": 1, "teachers.max_steps": 1}
    run_pipeline(checked_recipe(recipe_file, overrides))
    for folder in ("", "teachers/positive"):
        assert AutoTokenizer.from_pretrained(Path("out", folder)).chat_template == TEMPLATE


def test_dora_and_rslora_hold_for_teachers_policy_card_and_merge(recipe_file):
    overrides = {"use_dora": True, "use_rslora": True, "max_steps": 1, "teachers.max_steps": 1}
    run_pipeline(checked_recipe(recipe_file, overrides))
    for folder in ("", "teachers/positive"):
        config = json.loads(Path("out", folder, "adapter_config.json").read_text())
        assert config["use_dora"]
        assert config["use_rslora"]
    assert "A DoRA (rank-stabilised) adapter" in Path("out/README.md").read_text()
    assert main(["export", "out", "--output", "shipped"]) == 0


def test_a_tracker_hears_of_every_stage_that_trains(recipe_file, tracked):
    assert main(["align", str(recipe_file), "--report_to", "trackio"]) == 0
    trained = [folder for folder, _, values in tracked if "train_loss" in values]
    assert trained == ["out/teachers/positive", "out/teachers/negative", "out"]
    lines = [(folder, step, values) for folder, step, values in tracked if "loss" in values]
    assert [line[:2] for line in lines] == [
        *(("out/teachers/positive", step) for step in (1, 2)),
        *(("out/teachers/negative", step) for step in (1, 2)),
        *(("out", step) for step in (1, 2, 3)),
    ]
    wanted = {"repr/reached", "repr/reached/layer_1", "repr/reached/layer_2"}
    assert all(wanted <= values.keys() for _, _, values in lines[4:])
    assert any("eval_loss" in values for _, _, values in tracked)


def test_the_metrics_hold_base_teachers_and_policy(recipe_file):
    run_pipeline(checked_recipe(recipe_file))
    models = json.loads(Path("out/metrics.json").read_text())["models"]
    assert list(models) == list(MODELS)
    for row in models.values():
        assert row["answers"] == 3
        accuracy = row["preference_accuracy"]
        interval = share_estimate([1.0] * round(3 * accuracy) + [0.0] * round(3 - 3 * accuracy))
        assert (accuracy, *row["preference_accuracy_interval"]) == pytest.approx(interval)
        assert row["unrelated_loss"] > 0
    assert models["base"] != models["policy"]


def test_the_recipe_as_run_is_the_same_recipe(recipe_file, capsys):
    run_pipeline(checked_recipe(recipe_file))
    capsys.readouterr()
    run_pipeline(checked_recipe("out/recipe.yaml"))
    assert "writing" not in capsys.readouterr().out


def test_a_second_run_leaves_complete_stages_alone(recipe_file, capsys):
    run_pipeline(checked_recipe(recipe_file))
    files = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.is_file()}
    run_pipeline(checked_recipe(recipe_file))
    assert files == {
        path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.is_file()
    }
    assert "positive: complete" in capsys.readouterr().out


def test_a_stage_made_with_other_settings_is_refused_and_named(recipe_file):
    run_pipeline(checked_recipe(recipe_file), stage="positive")
    with pytest.raises(ValueError, match=r"max_steps: 2 there, 1 now"):
        run_pipeline(checked_recipe(recipe_file, {"teachers.max_steps": 1}))


def test_stages_of_a_version_that_had_fewer_keys_are_complete_as_long_as_these_are_defaults(
    recipe_file, capsys
):
    plain = {"dpo_weight": 0}
    run_pipeline(checked_recipe(recipe_file, plain))
    missing = {"dpo_weight", "dtype", "max_length", "max_new_tokens"}
    for path in Path("out").rglob("stage.json"):
        record = json.loads(path.read_text())
        kept = {key: value for key, value in record["settings"].items() if key not in missing}
        path.write_text(json.dumps({**record, "settings": kept}))
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"max_new_tokens: 48 there, 3 now"):
        run_pipeline(checked_recipe(recipe_file, plain))
    run_pipeline(checked_recipe(recipe_file, {**plain, "evaluation.max_new_tokens": 48}))
    assert "writing" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"dpo_weight: 0.0 there, 1.0 now"):
        run_pipeline(checked_recipe(recipe_file))


def test_stages_of_a_version_that_had_more_keys_are_complete_where_these_had_no_effect(
    recipe_file,
):
    recipe = checked_recipe(recipe_file)
    gone = {"kl_temperature": 1.0, "prediction_weight": 0.0, "prediction_alpha": 1.0}
    stage_record(recipe, "alignment").finish()
    path = Path("out/stage.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "settings": record["settings"] | gone}))
    assert stage_record(recipe, "alignment").is_complete()
    changed = record["settings"] | gone | {"prediction_weight": 0.5}
    path.write_text(json.dumps({**record, "settings": changed}))
    with pytest.raises(ValueError, match=r"prediction_weight: 0\.5 there, None now"):
        stage_record(recipe, "alignment").is_complete()


def test_a_change_that_decides_nothing_is_no_other_setting(recipe_file):
    run_pipeline(checked_recipe(recipe_file), stage="positive")
    run_pipeline(checked_recipe(recipe_file, {"save_steps": 7}), stage="positive")


def test_a_stage_whose_predecessor_is_missing_names_what_to_run_first(recipe_file):
    with pytest.raises(ValueError, match="needs 'positive', which is not complete"):
        run_pipeline(checked_recipe(recipe_file), stage="alignment")


def test_an_unknown_stage_is_refused_with_the_names_of_the_stages(recipe_file):
    with pytest.raises(ValueError, match="positive, negative, alignment, evaluation"):
        run_pipeline(checked_recipe(recipe_file), stage="teachers")


def test_the_directions_of_a_mean_shift_are_a_stage_of_their_own(recipe_file):
    run_pipeline(
        checked_recipe(
            recipe_file, {"shift": "mean", "dpo_weight": 0, "pairs_together": False, "alpha": 3}
        )
    )
    assert Path("out/directions/directions.safetensors").exists()
    run_pipeline(
        checked_recipe(
            recipe_file,
            {
                "method": "direction",
                "directions": "out/directions",
                "output_dir": "back",
                "alpha": 3,
            },
        )
    )
    ours, stored = (
        json.loads(Path(folder, "metrics.json").read_text())["eval_loss"]
        for folder in ("out", "back")
    )
    assert ours == pytest.approx(stored, rel=1e-5)


@pytest.mark.parametrize("method", ["scit", "lorra", "dpo_shift"])
def test_the_other_methods_run_to_the_end(recipe_file, method):
    recipe = checked_recipe(
        recipe_file,
        {"method": method, "instructions": {"positive": "w3 w4", "negative": "w3 w5"}},
    )
    run_pipeline(recipe)
    assert "policy" in results_text(Path("out"))


def test_given_teachers_are_used_and_not_trained(recipe_file, family):
    given = {f"teachers.{name}": str(family.adapters[name]) for name in ("positive", "negative")}
    run_pipeline(checked_recipe(recipe_file, given))
    assert not Path("out/teachers").exists()


def test_a_full_model_may_teach_and_is_in_the_table(recipe_file, family):
    given = {
        "teachers.positive": str(family.adapters["positive"]),
        "teachers.negative": str(family.base),
    }
    run_pipeline(checked_recipe(recipe_file, given))
    models = json.loads(Path("out/metrics.json").read_text())["models"]
    assert models["negative"] == models["base"]
    assert models["positive"] != models["base"]


def test_a_killed_stage_goes_on_from_its_checkpoint(recipe_file, monkeypatch):
    options = {"save_steps": 1, "save_strategy": "steps"}
    run_pipeline(checked_recipe(recipe_file, {**options, "output_dir": "whole"}))

    loss = RAHFTrainer.item_loss

    def killed(self, model, batch):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return loss(self, model, batch)

    monkeypatch.setattr(RAHFTrainer, "item_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(checked_recipe(recipe_file, options))
    monkeypatch.setattr(RAHFTrainer, "item_loss", loss)
    run_pipeline(checked_recipe(recipe_file, options))
    assert (
        Path("out/adapter_model.safetensors").read_bytes()
        == Path("whole/adapter_model.safetensors").read_bytes()
    )


def test_data_is_described_per_split_with_the_mask_visible(recipe_file):
    text = describe_data(checked_recipe(recipe_file))
    assert "6 of 6 pairs kept" in text
    assert "3 of 3 pairs kept" in text
    assert "[[" in text


def test_a_mixture_with_fractions_trains(recipe_file):
    recipe = checked_recipe(
        recipe_file,
        {
            "dataset_name": None,
            "datasets": [
                {"path": "pairs", "fraction": 0.5},
                {"path": "pairs", "split": "test", "fraction": 1.0},
            ],
            "dataset_test_split": None,
            "evaluation.prompts": None,
        },
    )
    run_pipeline(recipe, stage="positive")
    assert Path("out/teachers/positive/adapter_model.safetensors").exists()


def test_instructions_that_a_template_drops_are_refused_since_the_shift_would_be_zero(recipe_file):
    alike = {"instructions.positive": "w2 w3", "instructions.negative": "w2  w3"}
    with pytest.raises(ValueError, match=r"row 0: both instructions give the same prompt ids"):
        run_pipeline(checked_recipe(recipe_file, {"method": "lorra", **alike}), stage="alignment")


@pytest.mark.parametrize("command", ["align", "dpo", "sweep"])
def test_ranks_that_are_not_connected_are_refused(recipe_file, monkeypatch, capsys, command):
    PartialState()  # of the test's one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    varied = ["--alpha", "1,2"] if command == "sweep" else []
    assert main([command, str(recipe_file), *varied]) == 2
    assert "2 processes were launched, but each of them runs alone" in capsys.readouterr().err
    assert not list(Path().rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("environment", "processes", "engine", "told"),
    [
        ({}, 1, "NO", None),
        ({"WORLD_SIZE": "1"}, 1, "NO", None),
        ({"WORLD_SIZE": "2"}, 2, "MULTI_CPU", None),
        ({"WORLD_SIZE": "2"}, 1, "NO", "2 processes were launched"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}, 2, "DEEPSPEED", None),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}, 2, "MULTI_CPU", "DeepSpeed"),
    ],
)
def test_the_size_of_the_world_and_its_engine_are_those_of_the_launch(
    monkeypatch, environment, processes, engine, told
):
    for name in ("WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    state = SimpleNamespace(num_processes=processes, distributed_type=DistributedType[engine])
    with pytest.raises(ValueError, match=told) if told else nullcontext():
        check_world(state, engine_chosen=True)
