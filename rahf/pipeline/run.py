"""A recipe's stages, one after the other: teachers, directions, alignment, evaluation.

Each stage leaves a complete folder and a record of what it was made with. A second run skips what
is complete and resumes the rest from its last checkpoint. Holds no idea of the method: it
builds, runs and saves.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainingArguments

from rahf.artifacts import (
    ANSWERS_FILE,
    LOG_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    identity_of,
    read_lines,
    read_object,
    write_json,
    write_lines,
    write_text,
)
from rahf.distributed.sharding import take_over_sharding, without_engine
from rahf.judges.by_name import sources_of
from rahf.models.adapters import POLICY, pad_id, scaled
from rahf.pipeline.auto_values import run_choice, with_choice
from rahf.pipeline.evaluation import evaluate_models
from rahf.pipeline.inputs import (
    QUIET_DEFAULTS,
    alignment_arguments,
    data_files,
    directions_of,
    load_base,
    load_tokenizer,
    lora_config,
    teachers_of,
    test_rows,
    train_rows,
)
from rahf.pipeline.kl_budget import kept_to_choice
from rahf.pipeline.mean_shift import fit_shift, take_shift
from rahf.pipeline.stages import deciding, is_complete, output_of_one_run, run_recorded
from rahf.recipe.direction_files import protected_folders
from rahf.recipe.files import needs_gpu
from rahf.recipe.recipe import Recipe
from rahf.records.stage_record import StageRecord
from rahf.report.tables import (
    judge_text,
    judges_tables,
    layers_table,
    models_table,
    side_by_side,
)
from rahf.trainer import RAHFTrainer
from rahf.training.checkpoints import ADAPTER_FILE
from rahf.training.run_files import training_figures, write_card
from rahf.training.teachers import TEACHER_DEFAULTS, train_teacher

logger = logging.getLogger(__name__)


def run_pipeline(recipe: Recipe, stage: str | None = None, *, quiet: bool = False) -> None:
    """Run every stage of `recipe` that is not complete, or only `stage`.

    The tables of the results are printed at the end unless `quiet`.

    Raises:
        ValueError: an unknown stage; a stage whose predecessors are missing; a folder that holds
            the stage made with other settings or from other content; another process writes there.
    """
    take_over_sharding()
    if stage is not None and stage not in recipe.stages:
        raise ValueError(
            f"this recipe has no stage {stage!r}; its stages are {', '.join(recipe.stages)}"
        )
    with output_of_one_run(recipe.output_dir, recipe.training.get("use_cpu", False)):
        if PartialState().device.type == "cpu" and PartialState().is_main_process:
            for line in needs_gpu(recipe):
                logger.warning("this machine has no GPU; %s", line)
        names = recipe.stages if stage is None else (stage,)
        for name in names:  # before any of them takes hours
            stage_record(recipe, name).refuse_foreign()
        for name in names:
            run_stage(recipe, name)
    if PartialState().is_main_process and stage in (None, "evaluation") and not quiet:
        print(results_text(recipe.output_dir))


def run_stage(recipe: Recipe, name: str) -> None:
    """Run one stage, unless its folder is complete."""
    record = stage_record(recipe, name)
    if is_complete(record, name):
        return
    check_predecessors(recipe, name)
    run: Callable[[Recipe], dict[str, Any]] = {
        "choice": run_choice_stage,
        "directions": take_directions if recipe.method.chooses else run_directions,
        "alignment": run_alignment,
        "evaluation": run_evaluation,
    }.get(name, lambda recipe: run_teacher(recipe, name))
    if name in ("directions", "alignment", "evaluation"):
        recipe = with_choice(recipe, stage_folder(recipe, "choice"))
    run_recorded(record, name, lambda: run(recipe))


def stage_folder(recipe: Recipe, name: str) -> Path:
    """Return a stage's folder: the policy is at the root of the output, the rest in own folders."""
    folders = {"alignment": ".", "evaluation": "evaluation"}
    folders |= {name: name for name in ("choice", "directions")}
    return recipe.output_dir / folders.get(name, f"teachers/{name}")


def stage_record(recipe: Recipe, name: str) -> StageRecord:
    """Return the record of a stage, which holds settings and content that decide its result."""
    made_from = {key: identity_of(*paths) for key, paths in stage_sources(recipe, name).items()}
    settings = stage_settings(recipe, name)
    folder, defaults = stage_folder(recipe, name), recipe.defaults()
    return StageRecord(folder, settings, defaults, made_from, "rahf align")


def stage_sources(recipe: Recipe, name: str) -> dict[str, list[str | Path]]:
    """Return the files and folders that a stage reads, by what they are."""
    teachers, method = teachers_of(recipe), recipe.method
    sources = {"model_name_or_path": [recipe.model.model_name_or_path]}
    sources["the pairs"] = data_files(recipe)
    if (template := recipe.data.chat_template) and "{" not in template:
        sources["chat_template"] = [template]
    if name in teachers:
        return sources
    sources |= {f"teachers.{teacher}": [path] for teacher, path in teachers.items()}
    if name == "evaluation":
        named = ("prompts", "unrelated_text")
        found = {f"evaluation.{key}": getattr(recipe.evaluation, key) for key in named}
        sources["the policy"] = [recipe.output_dir / ADAPTER_FILE]
        for judge in recipe.evaluation.judges:
            sources[f"the judge {judge}"] = sources_of(judge, recipe.evaluation.encoder)
    else:
        found = {"retain_dataset_name": method.retain_dataset_name, "directions": method.directions}
        found |= {f"protect: {folder}": folder for folder in protected_folders(recipe)}
    if name == "alignment" and "directions" in recipe.stages:
        found["directions"] = directions_of(recipe)
    return sources | {key: [path] for key, path in found.items() if path is not None}


def stage_settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """Return the settings that decide the result of a stage."""
    whole = recipe.as_dict()
    shared = {**dataclasses.asdict(recipe.model), **dataclasses.asdict(recipe.data)}
    if name == "evaluation":
        return {key: value for key, value in whole["evaluation"].items() if key != "workers"}
    if name in ("alignment", "choice", "directions"):
        read = {key: value for key, value in whole.items() if key not in ("evaluation", "compare")}
        return deciding(read)
    training = deciding(recipe.teacher_training)
    extra = {}
    if name == "contrast":
        extra = {
            "instructions": recipe.method.instructions,
            "label_smoothing": recipe.teachers.label_smoothing,
        }
    if name == "preferred":
        extra = {"beta": recipe.teachers.beta}
    return {**shared, **training, **extra}


def check_predecessors(recipe: Recipe, name: str) -> None:
    """Refuse a stage that reads what an earlier stage has not finished."""
    if name in teachers_of(recipe):  # which read no other stage
        return
    for earlier in recipe.stages[: recipe.stages.index(name)]:
        folder = stage_folder(recipe, earlier)
        if not stage_record(recipe, earlier).is_complete():
            raise ValueError(
                f"stage {name!r} needs {earlier!r}, which is not complete in {folder}. Run it "
                f"first: --stage {earlier}, or omit --stage to run all."
            )


def run_teacher(recipe: Recipe, name: str) -> dict[str, Any]:
    tokenizer = load_tokenizer(recipe)
    args = TrainingArguments(
        output_dir=str(stage_folder(recipe, name)),
        **{**QUIET_DEFAULTS, **TEACHER_DEFAULTS, **recipe.teacher_training},
    )
    trainer = train_teacher(
        name,
        load_base(recipe),
        train_rows(recipe, tokenizer, step=1),
        tokenizer,
        lora_config(recipe),
        args,
        recipe.teachers.label_smoothing,
        recipe.teachers.beta,
        recipe.method.packing,
    )
    return save_log(trainer)


def run_choice_stage(recipe: Recipe) -> dict[str, Any]:
    start = perf_counter()
    with without_engine():
        run_choice(recipe, stage_folder(recipe, "choice"))
    return {"training": {"train_runtime": perf_counter() - start}}


def run_directions(recipe: Recipe) -> dict[str, Any]:
    tokenizer, folder = load_tokenizer(recipe), stage_folder(recipe, "directions")
    args, rows = alignment_arguments(recipe), train_rows(recipe, tokenizer, step=2)
    with without_engine():
        seconds = fit_shift(recipe, args, rows, tokenizer, folder)
    return {"training": {"train_runtime": seconds}}


def take_directions(recipe: Recipe) -> dict[str, Any]:
    take_shift(stage_folder(recipe, "choice"), stage_folder(recipe, "directions"))
    return {"training": {"train_runtime": 0.0}}


def run_alignment(recipe: Recipe) -> dict[str, Any]:
    tokenizer, args = load_tokenizer(recipe), alignment_arguments(recipe)
    trainer = RAHFTrainer(
        load_base(recipe),
        args,
        train_rows(recipe, tokenizer, step=2),
        test_rows(recipe, tokenizer),
        tokenizer,
        lora_config(recipe),
        teachers_of(recipe),
        directions_of(recipe),
    )
    trainer.train(resume_from_checkpoint=trainer.last_checkpoint())
    policy = trainer.alignment.model
    kept = kept_to_choice(policy, pad_id(tokenizer), stage_folder(recipe, "choice"))
    if kept is not None:
        trainer.strength = kept.strength
    with scaled(policy, POLICY, trainer.strength):
        metrics = trainer.evaluate() if trainer.eval_rows is not None else {}
    trainer.save_model()
    if kept is not None:
        metrics |= {f"choice/{name}": value for name, value in kept._asdict().items()}
    results = save_log(trainer)
    results["training"]["sampling_seconds"] = trainer.sampling_seconds
    if trainer.args.should_save:
        write_json(recipe.output_dir / METRICS_FILE, results["training"] | metrics)
        write_text(recipe.output_dir / RECIPE_FILE, recipe.as_yaml())
        write_card(recipe.output_dir, recipe.as_dict(), metrics)
    return results


def run_evaluation(recipe: Recipe) -> dict[str, Any]:
    """Measure base, teachers and policy on the same held-out data."""
    is_main = PartialState().is_main_process
    metrics = read_object(recipe.output_dir / METRICS_FILE) if is_main else {}
    with without_engine():
        models = evaluate_models(recipe, stage_folder(recipe, "evaluation"), metrics)
    if is_main:
        metrics |= {"models": models}
        write_json(recipe.output_dir / METRICS_FILE, metrics)
        write_card(recipe.output_dir, recipe.as_dict(), metrics)
    return {}


def save_log(trainer: Trainer) -> dict[str, Any]:
    """Write what the trainer has logged; return the figures of the training as a whole."""
    log = trainer.state.log_history
    if trainer.args.should_save:
        write_lines(Path(trainer.args.output_dir) / LOG_FILE, log)
    return {"training": training_figures(log)}


def results_text(folder: Path) -> str:
    """Return the tables that the run in `folder` ends with, read from its files."""
    metrics, parts = read_object(folder / METRICS_FILE), []
    if "models" in metrics:
        models = metrics["models"]
        parts += [models_table(models), *filter(None, [judge_text(models)]), *judges_tables(models)]
    if "eval_repr/reached" in metrics:
        parts.append(layers_table(metrics))
    answers = folder / "evaluation" / ANSWERS_FILE
    if answers.exists():
        parts.append(side_by_side(read_lines(answers), only=("base", "policy")))
    return "\n\n".join(["", *parts, f"results: {folder}"])
