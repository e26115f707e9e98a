"""A recipe's stages, one after the other: teachers, directions, alignment, evaluation.

Each stage leaves a complete folder and a record of what it was made with. A second run skips what
is complete and goes on from the last checkpoint of what is not. Holds no idea of the method: it
builds, runs and saves.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments

from rahf.alignment import build_alignment
from rahf.artifacts import (
    ANSWERS_FILE,
    LOG_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    StageRecord,
    read_json,
    read_lines,
    write_json,
    write_lines,
    write_text,
)
from rahf.data.summary import describe
from rahf.directions.vectors import Directions
from rahf.distributed.sharding import take_over_sharding, without_engine
from rahf.evaluation.table import measure
from rahf.generation.answers import pad_id
from rahf.models.adapters import POLICY, frozen_pass, is_adapter, scaled
from rahf.pipeline.choice import kept_to_choice, run_choice, with_choice
from rahf.pipeline.inputs import (
    directions_of,
    held_out_of,
    load_base,
    load_tokenizer,
    lora_config,
    teachers_of,
    test_rows,
    tokenized_split,
    train_rows,
)
from rahf.pipeline.stages import is_complete, run_recorded
from rahf.recipe.config import TEACHERS
from rahf.recipe.recipe import Recipe
from rahf.report.card import model_card
from rahf.report.figures import training_figure
from rahf.report.tables import layers_table, models_table, side_by_side
from rahf.trainer import RAHFConfig, RAHFTrainer
from rahf.training.adapter_trainer import AdapterTrainer
from rahf.training.preparation import fit_mean_shift
from rahf.training.teachers import TEACHER_DEFAULTS, train_teacher


def run_pipeline(recipe: Recipe, stage: str | None = None, *, quiet: bool = False) -> None:
    """Run every stage of `recipe` that is not complete, or `stage` alone.

    The tables of the results are printed at the end unless `quiet`.

    Raises:
        ValueError: an unknown stage; a stage whose predecessors are missing; a folder that holds
            the stage made with other settings.
    """
    take_over_sharding()
    PartialState(cpu=recipe.training.get("use_cpu", False))
    if stage is not None and stage not in recipe.stages:
        raise ValueError(
            f"this recipe has no stage {stage!r}; its stages are {', '.join(recipe.stages)}"
        )
    for name in recipe.stages if stage is None else (stage,):
        run_stage(recipe, name)
    if PartialState().is_main_process and stage in (None, "evaluation") and not quiet:
        print(summary(recipe.output_dir))


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
    """The policy stands at the root of the output folder, the rest in folders of its own."""
    folders = {"alignment": ".", "evaluation": "evaluation"}
    folders |= {name: name for name in ("choice", "directions")}
    return recipe.output_dir / folders.get(name, f"teachers/{name}")


def stage_record(recipe: Recipe, name: str) -> StageRecord:
    return StageRecord(stage_folder(recipe, name), stage_settings(recipe, name), recipe.defaults())


def stage_settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """What decides the result of a stage; a change of anything else leaves it as it is."""
    whole = recipe.as_dict()
    shared = {**dataclasses.asdict(recipe.model), **dataclasses.asdict(recipe.data)}
    if name == "evaluation":
        return whole["evaluation"]
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


def deciding(training: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those of no consequence; a batch is known by its rows over all ranks."""
    kept = {key: value for key, value in training.items() if key not in UNDECIDING}
    rows = kept.pop("per_device_train_batch_size", 8) * kept.pop("gradient_accumulation_steps", 1)
    return kept | {"rows_per_step": rows * PartialState().num_processes}


QUIET_DEFAULTS = {"report_to": "none", "dataloader_pin_memory": torch.cuda.is_available()}
"""Where transformers' own defaults would warn, or report to whatever tracker is installed."""

UNDECIDING = {
    *("output_dir", "disable_tqdm", "report_to", "run_name", "resume_from_checkpoint"),
    *("save_steps", "save_strategy", "save_total_limit", "dataset_num_proc"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "dataloader_num_workers"),
    *("packing", "target_cache"),
}
"""Keys of a recipe that say where a run goes and what it shows, and leave its result alone."""


def check_predecessors(recipe: Recipe, name: str) -> None:
    """Refuse a stage that reads what an earlier stage has not finished."""
    for earlier in recipe.stages[: recipe.stages.index(name)]:
        if name in TEACHERS[recipe.method.method]:
            return
        folder = stage_folder(recipe, earlier)
        if not stage_record(recipe, earlier).is_complete():
            raise ValueError(
                f"stage {name!r} needs {earlier!r}, which is not complete in {folder}. Run it "
                f"first: --stage {earlier}, or leave --stage away to run all."
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
    lengths = {
        "max_prompt_length": recipe.data.max_prompt_length,
        "max_length": recipe.data.max_length,
    }
    start = perf_counter()
    with without_engine():
        results = run_choice(recipe, stage_folder(recipe, "choice"), {**QUIET_DEFAULTS, **lengths})
    return {**results, "training": {"train_runtime": perf_counter() - start}}


def run_directions(recipe: Recipe) -> dict[str, Any]:
    tokenizer = load_tokenizer(recipe)
    args = alignment_arguments(recipe)
    rows = train_rows(recipe, tokenizer, step=2)
    with without_engine():
        base, teachers = load_base(recipe), teachers_of(recipe)
        start = perf_counter()
        alignment = build_alignment(base, args, lora_config(recipe), teachers)
        directions = fit_mean_shift(alignment, rows, tokenizer, args)
    if PartialState().is_main_process:
        directions.save(stage_folder(recipe, "directions"))
    return {"training": {"train_runtime": perf_counter() - start}}


def take_directions(recipe: Recipe) -> dict[str, Any]:
    """The shift that the strength was solved for is the one that is aligned to."""
    if PartialState().is_main_process:
        chosen = Directions.load(stage_folder(recipe, "choice"))
        chosen.save(stage_folder(recipe, "directions"))
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
        training_figure(trainer.state.log_history, recipe.output_dir / "training.png")
        write_text(recipe.output_dir / "README.md", model_card(recipe.as_dict(), metrics))
    return results


def run_evaluation(recipe: Recipe) -> dict[str, Any]:
    """Measure base, teachers and policy on the same held-out data."""
    tokenizer, folder = load_tokenizer(recipe), stage_folder(recipe, "evaluation")
    prompts, held_out = held_out_of(recipe, tokenizer)
    metrics = read_json(recipe.output_dir / METRICS_FILE)
    # The alignment has measured the policy's preferences: they are not measured again.
    known = {
        "preference_accuracy": metrics.get("eval_preference/accuracies"),
        "preference_margin": metrics.get("eval_preference/margins"),
    }
    models, answers = {}, {}
    with without_engine():
        for name, model in models_to_measure(recipe):
            asked = dataclasses.replace(held_out, pairs=()) if name == "policy" else held_out
            measured, answers[name] = measure(model, tokenizer, asked, name)
            models[name] = measured.as_dict() | (known if name == "policy" else {})
    if PartialState().is_main_process:
        metrics |= {"models": models}
        write_json(recipe.output_dir / METRICS_FILE, metrics)
        write_text(recipe.output_dir / "README.md", model_card(recipe.as_dict(), metrics))
        by_model = {"answers": answers}
        if held_out.judge is not None:
            by_model["scores"] = {name: held_out.judge(given) for name, given in answers.items()}
        write_lines(
            folder / ANSWERS_FILE,
            (
                {"prompt": prompt}
                | {
                    kind: {name: values[index] for name, values in given.items()}
                    for kind, given in by_model.items()
                }
                for index, prompt in enumerate(prompts)
            ),
        )
    return {}


def models_to_measure(recipe: Recipe) -> Iterator[tuple[str, nn.Module]]:
    """The rows of the table, one after the other: adapters of one base, or full models by turns."""
    wanted = recipe.evaluation.models
    model = PeftModel.from_pretrained(load_base(recipe), recipe.output_dir)
    if "base" in wanted:
        with frozen_pass(model, None):
            yield "base", model
    for name, path in teachers_of(recipe).items() if "teachers" in wanted else ():
        if is_adapter(path):
            model.load_adapter(str(path), adapter_name=name)
            with frozen_pass(model, name):
                yield name, model
        else:
            yield name, load_base(recipe, path)
    if "policy" in wanted:
        with frozen_pass(model, POLICY):
            yield "policy", model


def alignment_arguments(recipe: Recipe) -> RAHFConfig:
    """The recipe as the arguments of the trainer."""
    method = {
        field.name: getattr(recipe.method, field.name)
        for field in dataclasses.fields(recipe.method)
    }
    lengths = {
        "max_prompt_length": recipe.data.max_prompt_length,
        "max_length": recipe.data.max_length,
    }
    return RAHFConfig(**{**QUIET_DEFAULTS, **method, **lengths, **recipe.training})


def save_log(trainer: AdapterTrainer) -> dict[str, Any]:
    """Write what the trainer has logged; returns the figures of the training as a whole."""
    log = trainer.state.log_history
    if trainer.args.should_save:
        write_lines(Path(trainer.args.output_dir) / LOG_FILE, log)
    whole = next((line for line in reversed(log) if "train_runtime" in line), {})
    return {
        "training": {key: value for key, value in whole.items() if key not in ("step", "epoch")}
    }


def summary(folder: Path) -> str:
    """The tables that the run in `folder` ends with, read from its files."""
    metrics, parts = read_json(folder / METRICS_FILE), []
    if "models" in metrics:
        parts.append(models_table(metrics["models"]))
    if "eval_repr/reached" in metrics:
        parts.append(layers_table(metrics))
    answers = folder / "evaluation" / ANSWERS_FILE
    if answers.exists():
        parts.append(side_by_side(read_lines(answers), only=("base", "policy")))
    return "\n\n".join(["", *parts, f"results: {folder}"])


def describe_data(recipe: Recipe) -> str:
    """What `rahf data` prints: what became of each split, and a few rows with their mask."""
    tokenizer, parts = load_tokenizer(recipe), []
    for split in filter(None, (recipe.data.dataset_train_split, recipe.data.dataset_test_split)):
        rows, report = tokenized_split(recipe, tokenizer, split)
        parts.append(f"{split}\n\n{describe(report, rows, tokenizer)}")
    return "\n\n".join(parts)
