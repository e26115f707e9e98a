"""A result is known by the content of everything it was made from, and belongs to one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from peft import AutoPeftModelForCausalLM
from planted_dictionaries import random_dictionary
from safetensors.torch import load_file, save_file
from tiny_models import classifier
from tiny_recipes import WORDS, write_lines

from rahf.artifacts import alone, identity_of, read_json, write_json
from rahf.cli import COMMANDS, main
from rahf.interpret.features.checkpoints import save_dictionary
from rahf.pipeline.placebo import training_of
from rahf.pipeline.run import results_text, stage_record
from rahf.recipe.files import checked_recipe
from rahf.records.makers import makers


def change_weights(folder, name="model.safetensors"):
    """Scale the weights in place: the file keeps its name, its size and its time."""
    path = Path(folder) / name
    stat = path.stat()
    save_file({key: 2 * part for key, part in load_file(path).items()}, path, {"format": "pt"})
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def change_text(path):
    stat, text = Path(path).stat(), Path(path).read_text()
    Path(path).write_text(text.replace("w3", "w8"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def whole_recipe(recipe_file, family):
    """Return the recipe with every file that it can name, and copies of its models."""
    shutil.copytree(family.base, "base")
    for name in ("positive", "negative"):
        shutil.copytree(family.adapters[name], name)
        config = Path(name, "adapter_config.json")
        base = {"base_model_name_or_path": str(Path("base").absolute())}
        config.write_text(json.dumps(json.loads(config.read_text()) | base))
    write_lines(Path("retained.jsonl"), [{"text": " ".join(WORDS[:6])}])
    recipe = yaml.safe_load(recipe_file.read_text())
    recipe |= {"model_name_or_path": "base", "retain_dataset_name": "retained.jsonl"}
    recipe |= {"retain_weight": 0.5, "retain_rows": 1}
    recipe["teachers"] |= {"positive": "positive", "negative": "negative"}
    recipe_file.write_text(yaml.safe_dump(recipe))
    return recipe_file


@pytest.mark.parametrize(
    ("stage", "change", "named"),
    [
        ("alignment", lambda: change_text("pairs/train.jsonl"), "the pairs"),
        ("alignment", lambda: change_text("pairs/test.jsonl"), "the pairs"),
        ("alignment", lambda: change_weights("base"), "model_name_or_path"),
        ("alignment", lambda: change_text("base/config.json"), None),
        (
            "alignment",
            lambda: change_weights("negative", "adapter_model.safetensors"),
            "teachers.negative",
        ),
        ("alignment", lambda: change_text("retained.jsonl"), "retain_dataset_name"),
        ("evaluation", lambda: change_text("pairs/test.jsonl"), "evaluation.prompts"),
        ("evaluation", lambda: change_text("texts.jsonl"), "evaluation.unrelated_text"),
    ],
)
def test_a_stage_made_from_other_content_is_refused_and_the_content_named(
    whole_recipe, stage, change, named
):
    recipe = checked_recipe(whole_recipe)
    stage_record(recipe, stage).finish()
    assert stage_record(recipe, stage).is_complete()
    change()
    if named is None:  # the text does not occur: nothing has changed
        assert stage_record(recipe, stage).is_complete()
        return
    with pytest.raises(ValueError, match=f"content of {named}: .* there, .* now"):
        stage_record(recipe, stage).is_complete()


@pytest.mark.parametrize(
    ("judge", "change"),
    [
        ("references:answers.jsonl", lambda: change_text("answers.jsonl")),
        ("references:answers.jsonl", lambda: change_weights("encoder")),
        ("reward:judge", lambda: change_weights("judge")),
        ("choice:judge", lambda: change_weights("judge")),
        ("choice:negative", lambda: change_weights("negative", "adapter_model.safetensors")),
        ("choice:negative", lambda: change_weights("base")),
        (["length", "reward:judge"], lambda: change_weights("judge")),
    ],
)
def test_an_evaluation_by_a_judge_that_has_changed_is_refused(whole_recipe, judge, change):
    for name in ("encoder", "judge"):
        shutil.copytree("base", name)
    if "reward:judge" in judge:
        classifier().save_pretrained("judge")
    rows = map(json.loads, Path("pairs/test.jsonl").read_text().splitlines())
    answers = [{"prompt": row["prompt"], "right": "w3", "wrong": "w4"} for row in rows]
    write_lines(Path("answers.jsonl"), answers)
    recipe = yaml.safe_load(whole_recipe.read_text())
    recipe["evaluation"] |= {"judge": judge, "encoder": "encoder"}
    whole_recipe.write_text(yaml.safe_dump(recipe))
    recipe = checked_recipe(whole_recipe)
    stage_record(recipe, "evaluation").finish()
    assert stage_record(recipe, "evaluation").is_complete()
    change()
    named = judge if isinstance(judge, str) else judge[-1]
    with pytest.raises(ValueError, match=f"content of the judge {named}: .* there, .* now"):
        stage_record(recipe, "evaluation").is_complete()


@pytest.mark.parametrize("content", ["", "[1]", "null", '{"training"'])
@pytest.mark.parametrize("read", [results_text, training_of])
def test_damaged_metrics_are_named_with_what_to_delete(tmp_path, read, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.json is damaged\. Delete it to make it again"):
        read(tmp_path)


@pytest.mark.parametrize("folder", ["base", "positive"])
@pytest.mark.parametrize(
    "command",
    [
        "align recipe.yaml --output_dir",
        "align recipe.yaml --teachers.positive null --output_dir",
        "reward --model base --pairs pairs --use_cpu --output",
        "dpo recipe.yaml --output",
    ],
)
def test_a_training_never_overwrites_the_folder_of_a_model(whole_recipe, capsys, command, folder):
    before = identity_of(folder), sorted(Path(folder).rglob("[!.]*"))
    assert main([*command.split(), folder]) == 2
    assert "and no stage.json: it is the folder of another model" in capsys.readouterr().err
    assert (identity_of(folder), sorted(Path(folder).rglob("[!.]*"))) == before


def test_a_finished_stage_of_a_version_without_identities_is_complete(whole_recipe):
    recipe = checked_recipe(whole_recipe)
    stage_record(recipe, "alignment").finish()
    record = json.loads(Path("out/stage.json").read_text())
    for key in ("made_from", "files"):
        del record[key]
    Path("out/stage.json").write_text(json.dumps(record))
    change_text("pairs/train.jsonl")
    assert stage_record(recipe, "alignment").is_complete()


def test_what_is_no_longer_there_is_not_held_against_a_finished_stage(whole_recipe):
    recipe = checked_recipe(whole_recipe)
    stage_record(recipe, "alignment").finish()
    shutil.rmtree("pairs")
    shutil.rmtree("positive")
    assert stage_record(recipe, "alignment").is_complete()


def generate(*more):
    given = ["generate", "--model", "positive", "--prompts", "pairs/test.jsonl", "--device", "cpu"]
    return main([*given, "--max_new_tokens", "2", "--output", "said.jsonl", *more])


def as_pickled(folder):
    """Keep the weights in a `.bin` file, as older checkpoints do."""
    import torch

    path = Path(folder, "model.safetensors")
    torch.save(load_file(path), Path(folder, "pytorch_model.bin"))
    path.unlink()


def test_generate_refuses_another_base_changed_weights_and_changed_bin_files(whole_recipe, capsys):
    shutil.copytree("base", "other")
    change_weights("other")
    assert generate() == 0
    assert generate("--base", "base") == 0  # the same files under another name
    assert generate("--base", "other") == 2
    assert "content of base: " in capsys.readouterr().err
    change_weights("positive", "adapter_model.safetensors")
    assert generate() == 2
    assert "content of model: " in capsys.readouterr().err


def test_weights_in_bin_files_count(whole_recipe):
    import torch

    as_pickled("base")
    before = identity_of("base")
    path = Path("base/pytorch_model.bin")
    torch.save({key: 2 * part for key, part in torch.load(path).items()}, path)
    assert identity_of("base") != before


def test_a_file_of_responses_of_a_version_with_file_times_is_complete(whole_recipe):
    assert generate() == 0
    run = json.loads(Path("said.jsonl.run.json").read_text())
    del run["made_from"]
    run["settings"]["weights"] = ["adapter_model.safetensors 12 345"]
    Path("said.jsonl.run.json").write_text(json.dumps(run))
    assert generate() == 0


def test_what_is_beside_a_model_is_no_part_of_it(family, tmp_path):
    base = shutil.copytree(family.base, tmp_path / "base")
    before = identity_of(base)
    (base / "log.jsonl").write_text("{}")
    (base / "checkpoint-1").mkdir()
    (base / "checkpoint-1/model.safetensors").write_text("other")
    assert identity_of(base) == before
    assert identity_of(tmp_path / "nothing") is None


HOLD = "import sys, pathlib, rahf.artifacts as a\nwith a.alone(pathlib.Path(sys.argv[1])):\n"
HOLD += "    print('held', flush=True)\n    sys.stdin.read()\n"


MODEL = "--model positive --device cpu"
WRITES = {
    "quickstart": ("recipes", ""),
    "recipes copy": ("recipes", "smollm2-135m/warm"),
    "align": ("out", "recipe.yaml"),
    "prepare": ("out", "recipe.yaml"),
    "generate": ("said.jsonl", f"{MODEL} --prompts pairs/test.jsonl --output said.jsonl"),
    "directions": ("out/reading/responses", "recipe.yaml"),
    "shift": ("shifts", f"{MODEL} --prompts pairs/test.jsonl --limit 1 --output shifts"),
    "screen": ("screened", f"pairs {MODEL} --directions bank --output screened"),
    "evaluate preferences": ("p.json", f"{MODEL} --pairs pairs --output p.json"),
    "evaluate responses": ("r.json", "--judge length --responses said.jsonl --output r.json"),
    "evaluate tasks": ("t.json", f"{MODEL} --tasks any --output t.json"),
    "reward": ("judge", "--model base --pairs pairs --use_cpu --output judge"),
    "dpo": ("out/dpo", "recipe.yaml"),
    "compare": ("out/compare", "recipe.yaml --dataset_test_split test --compare.judge length"),
    "report": ("page.html", "out --output page.html"),
    "export": ("exported", "positive --output exported"),
    "push": ("positive", "positive me/mine --base me/base"),
    "features train": ("feats", "--model base --pairs pairs --output feats"),
    "features decompose": ("f.json", "vectors --dictionary d --output f.json"),
    "features diff": ("moved", "--model positive --dictionary d --pairs pairs --output moved"),
    "features steer": (
        "said.jsonl",
        f"{MODEL} --dictionary dictionary --feature 1 --how ablate --prompts pairs/test.jsonl "
        "--output said.jsonl",
    ),
    "features probe": ("f.json", f"{MODEL} --dictionary d --texts t.jsonl --output f.json"),
    "features logits": ("f.json", f"{MODEL} --dictionary d --feature 1 --output f.json"),
    "features neurons": ("f.json", f"{MODEL} --dictionary d --text t.jsonl --output f.json"),
    "features universality": (
        "f.json",
        f"{MODEL} --dictionary d --text t.jsonl --other_model base --other_dictionary e "
        "--output f.json",
    ),
    "features splitting": ("f.json", "--dictionary d --larger e --output f.json"),
    "features explain": ("why", f"{MODEL} --dictionary d --text t.jsonl --output why"),
    "features score": ("why", "why"),
    "influence fit": ("factors", "--adapter out --factors factors"),
    "influence score": ("causes", "--adapter out --pairs pairs --output causes"),
    "influence validate": ("causes", "--adapter out --pairs pairs --output causes"),
    "influence clean": ("causes", "--adapter out --pairs pairs --output causes"),
    "sweep": ("grid/sweep", "recipe.yaml --alpha 1,2 --output_dir grid"),
}
"""What every command writes, or sends, and its arguments."""

WRITE_NOTHING = {"chat", "completion", "data", "env", "plan", "recipes list", "validate"}


def test_the_output_of_every_command_is_known():
    commands = {
        word
        for name, entry in COMMANDS.items()
        for word in (
            [f"{name} {kind}" for kind in entry.kinds] if "kinds" in dir(entry) else [name]
        )
    }
    assert WRITES.keys() | WRITE_NOTHING == commands


@pytest.mark.parametrize("command", WRITES)
def test_a_second_process_reports_who_holds_the_output(whole_recipe, family, capsys, command):
    output, arguments = WRITES[command]
    save_dictionary(random_dictionary(family.load_base()), Path("dictionary"))
    before = {path for path in Path().rglob("*") if not path.name.startswith(".")}
    held = [sys.executable, "-c", HOLD, output]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(held, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        assert main([*command.split(), *arguments.split()]) == 2
        told = capsys.readouterr().err
        other.stdin.close()
    assert f"error: {output} is being made by process {other.pid} on " in told
    assert " since 20" in told
    made = {path for path in Path().rglob("*") if not path.name.startswith(".")} - before
    assert {path for path in made if path.is_file() and "cache" not in path.parts} == set()
    with alone(Path(output), wait=False):
        pass


OWN_FOLDERS = {"prepare", "push", "features score", "influence fit", "quickstart", "recipes copy"}
"""Commands that write to the cache, the Hub, the folder that they read, or new files only."""


@pytest.mark.parametrize("command", sorted(WRITES.keys() - OWN_FOLDERS))
def test_no_command_overwrites_the_result_of_another(whole_recipe, capsys, command):
    output, arguments = WRITES[command]
    given = [*command.split(), *arguments.split()]
    given += ["--output", output] if command in ("directions", "dpo") else []
    maker = "rahf shift" if command == "features diff" else "rahf features diff"
    record = Path(output)
    if record.suffix == ".jsonl":
        record = record.with_name(f"{record.name}.unfinished")
    elif not record.suffix:
        record = record / "features.json"
    write_json(record, {"made_by": maker})
    record.write_text(json.dumps(read_json(record)))
    before = {path for path in Path().rglob("[!.]*") if "cache" not in path.parts}
    assert main(given) == 2
    told = capsys.readouterr().err
    assert f"error: {output} holds a result of `{maker}` ({record.name}), which `rahf " in told
    assert makers(Path(output)) == {maker: record}
    assert {path for path in Path().rglob("[!.]*") if "cache" not in path.parts} == before


def test_a_folder_that_nothing_can_be_written_beside_holds_its_own_lock(tmp_path, monkeypatch):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with alone(mounted, wait=False):
        assert (mounted / ".mounted.holder").exists()
        with (
            pytest.raises(ValueError, match="is being made by process"),
            alone(mounted, wait=False),
        ):
            pass
    assert not list(tmp_path.glob(".*"))


ADAPTER = "out/teachers/positive/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda: Path(ADAPTER).unlink(), "is missing"),
        (
            lambda: Path(ADAPTER).write_bytes(Path(ADAPTER).read_bytes()[:-9]),
            "differs from what",
        ),
        (lambda: change_weights(Path(ADAPTER).parent, Path(ADAPTER).name), "differs from what"),
        (
            lambda: Path(ADAPTER).with_name("adapter_config.json").write_text(""),
            "differs from what",
        ),
    ],
)
def test_a_finished_stage_whose_files_are_gone_or_damaged_is_made_again(
    recipe_file, capsys, damage, told
):
    assert main(["align", str(recipe_file), "--stage", "positive"]) == 0
    before, kept = Path(ADAPTER).read_bytes(), Path(ADAPTER).with_name("README.md")
    kept.write_text("a user's own")
    damage()
    capsys.readouterr()
    assert main(["align", str(recipe_file), "--stage", "positive"]) == 0
    out = capsys.readouterr().out
    assert f"positive: not complete, since {Path(ADAPTER).parent}" in out
    assert told in out
    assert Path(ADAPTER).read_bytes() == before
    assert main(["align", str(recipe_file), "--stage", "positive"]) == 0
    assert "positive: complete" in capsys.readouterr().out


def test_files_that_a_later_stage_or_a_user_writes_are_no_damage(recipe_file, capsys):
    assert main(["align", str(recipe_file)]) == 0
    for name in ("README.md", "training.png", "lengths.json"):
        Path("out", name).write_text("another")
    capsys.readouterr()
    assert main(["align", str(recipe_file)]) == 0
    assert "writing" not in capsys.readouterr().out
    Path("out/metrics.json").unlink()
    assert stage_record(checked_recipe(recipe_file), "alignment").damage() is not None


def test_adapters_on_a_relative_base_load_from_any_folder(whole_recipe, tmp_path, monkeypatch):
    options = ["recipe.yaml", "--max_steps", "1", "--save_steps", "1", "--save_strategy", "steps"]
    assert main(["align", *options, "--stage", "alignment"]) == 0
    assert main(["dpo", *options]) == 0
    reward = ["--model", "base", "--pairs", "pairs", "--max_steps", "1", "--output", "judge"]
    assert main(["reward", *reward, "--use_cpu"]) == 0
    monkeypatch.chdir("/")
    configs = [path for path in tmp_path.rglob("adapter_config.json") if "base" not in path.parts]
    places = {str(path.parent.relative_to(tmp_path)) for path in configs}
    assert {"out", "out/checkpoint-1", "out/dpo", "out/dpo/checkpoint-1", "judge"} <= places
    for path in configs:
        assert Path(json.loads(path.read_text())["base_model_name_or_path"]).is_dir()
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
