"""The stage `directions`: the mean shift that the alignment moves towards.

Loads and saves; the fit is `training.preparation.fit_mean_shift`.
"""

from pathlib import Path
from time import perf_counter

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from rahf.alignment import build_alignment
from rahf.directions.vectors import Directions
from rahf.pipeline.inputs import load_base, lora_config, teachers_of
from rahf.recipe.recipe import Recipe
from rahf.training.preparation import fit_mean_shift


def fit_shift(
    recipe: Recipe,
    args: TrainingArguments,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> float:
    """Fit the mean shift to the training rows and save it; returns the seconds of the fit."""
    base, teachers = load_base(recipe), teachers_of(recipe)
    start = perf_counter()
    alignment = build_alignment(base, args, lora_config(recipe), teachers)
    directions = fit_mean_shift(alignment, rows, tokenizer, args)
    if PartialState().is_main_process:
        directions.save(folder)
    return perf_counter() - start


def take_shift(chosen: Path, folder: Path) -> None:
    """Save the shift that alpha was solved for as the shift of the alignment."""
    if PartialState().is_main_process:
        Directions.load(chosen).save(folder)
