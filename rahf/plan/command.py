"""`rahf plan`: from a recipe, an accelerate configuration and a device to the text of the plan.

Reads the model's config.json and counts rows; loads neither weights nor torch.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rahf.data.hub import exists, refuse_missing
from rahf.distributed.accelerate import read_launch
from rahf.models.shapes import Decoder, read_decoder
from rahf.plan.case import Case
from rahf.plan.lengths import LENGTHS_FILE, Lengths, bounds, count_rows, read_measured
from rahf.plan.report import as_figures, refusal, report
from rahf.recipe.recipe import Recipe


class PlanOptions(NamedTuple):
    """Settings of the command line beside the recipe."""

    accelerate_config: str | None = None
    num_processes: int | None = None
    device_memory: float | None = None  # GiB
    rows: int | None = None
    mean_tokens: float | None = None
    model_config: Path | None = None


class DoesNotFitError(ValueError):
    """The plan needs more memory than the device has."""


def plan(
    recipe: Recipe, options: PlanOptions, *, as_json: bool = False
) -> tuple[str, DoesNotFitError | None]:
    """Return the plan, and the refusal where a device is given that the recipe does not fit."""
    case, source = case_of(recipe, options)
    wrong = refusal(case, options.device_memory) if options.device_memory is not None else None
    if as_json:
        fits = None if options.device_memory is None else wrong is None
        text = json.dumps({**as_figures(case), "fits": fits}, indent=2)
    else:
        text = report(case, source)
    return text, DoesNotFitError(wrong) if wrong else None


def case_of(recipe: Recipe, options: PlanOptions) -> tuple[Case, str]:
    """Return what is planned, and where the lengths of its rows come from."""
    launch = read_launch(options.accelerate_config, options.num_processes, recipe.training)
    decoder = model_decoder(recipe, options.model_config)
    recipe = _with_stored_dtype(recipe, options.model_config)
    lengths, rows, source = _lengths(recipe, options)
    return Case(recipe, decoder, launch, lengths, rows), source


def model_decoder(recipe: Recipe, given: Path | None = None) -> Decoder:
    """Return the decoder of the recipe's model, or of the config.json given in its place."""
    path = _config_path(recipe, given)
    return read_decoder(_read_json(path), str(path))


def _config_path(recipe: Recipe, given: Path | None) -> Path:
    if given is not None:
        return given
    name = recipe.model.model_name_or_path
    revision, cure = recipe.model.model_revision, "give its config.json with --model_config FILE"
    refuse_missing(name, revision, f"model_name_or_path: {name}", cure)
    if exists(name):
        return Path(name) / "config.json"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except OSError as error:  # also those of the Hub and of the connection
        raise ValueError(
            f"the config.json of {name} cannot be fetched from the Hub ({error}): {cure}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON") from error


def _with_stored_dtype(recipe: Recipe, given: Path | None) -> Recipe:
    """Replace `dtype: auto` by the dtype that config.json names."""
    if recipe.model.dtype != "auto":
        return recipe
    config = _read_json(_config_path(recipe, given))
    config = config.get("text_config") or config
    stored = config.get("dtype") or config.get("torch_dtype") or "float32"
    return replace(recipe, model=replace(recipe.model, dtype=stored))


def _lengths(recipe: Recipe, options: PlanOptions) -> tuple[Lengths, int | None, str]:
    measured = read_measured(recipe, options.mean_tokens)
    if measured is not None:
        lengths, rows = measured
        source = f"measured ({recipe.output_dir / LENGTHS_FILE})"
    else:
        lengths, rows = bounds(recipe, options.mean_tokens), None
        data = recipe.data
        source = (
            f"upper bounds (max_prompt_length {data.max_prompt_length}, max_length "
            f"{data.max_length}): `rahf data` measures them, --mean_tokens sets them"
        )
    if options.mean_tokens is not None:
        source = f"{options.mean_tokens:g} tokens per row (--mean_tokens); memory: {source}"
    if options.rows is not None:
        rows = options.rows
    elif rows is None:
        rows = count_rows(recipe)
    return lengths, rows, source
