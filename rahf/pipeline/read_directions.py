"""`rahf directions`: from a recipe's pairs to directions, a table and a chart.

Loads, fits, writes; the ideas are in `directions.fitters` and `directions.evidence`.
"""

import hashlib
import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from rahf.artifacts import write_text
from rahf.directions.effect import candidates, effect_on_predictions
from rahf.directions.evidence import Fitted, Measured, cosines, fit, measure
from rahf.directions.states import Reader
from rahf.directions.vectors import Directions
from rahf.distributed.sharding import take_over_sharding, without_engine
from rahf.models.adapters import base_name, check_same_base, depth_of, pad_id, put_adapter
from rahf.pipeline.inputs import (
    known_held_out_split,
    load_base,
    load_tokenizer,
    test_rows,
    train_rows,
)
from rahf.pipeline.stages import output_of_one_run
from rahf.recipe.fields import raise_problems
from rahf.recipe.held_out import HELD_OUT
from rahf.recipe.layers import resolve_layers
from rahf.recipe.recipe import Recipe
from rahf.recipe.shift_options import instruction_problems
from rahf.records.command_line import write_result
from rahf.report.directions import evidence_chart, evidence_text

EVIDENCE_FILE = "evidence.json"
BASE = "base"  # in place of an adapter
HELD_OUT_SHARE = 5  # one row in so many is held out where the recipe has no test split


class ReadingOptions(NamedTuple):
    """Options of the command line."""

    source: str = "responses"
    tokens: str = "mean"
    fit: str = "mean"
    compare: tuple[str, ...] = ()  # other fits, in the table
    layers: str | None = None  # all
    positive: str | None = None  # adapters: of the recipe's teachers
    negative: str | None = None
    rows: int | None = None  # all
    effect: str | None = None  # layers whose share of the adapter's effect is measured
    effect_pairs: int = 16  # held-out pairs that it is measured on
    output: Path | None = None


def read_directions(recipe: Recipe, options: ReadingOptions) -> None:
    """Fit, measure and write directions; prints the table.

    Raises:
        ValueError: an adapter is missing or of another base; layers that the model does not have;
            another run writes there.
    """
    if options.effect and options.source != "adapters":
        raise ValueError("--effect measures an adapter's effect: it needs --source adapters.")
    take_over_sharding()
    folder = options.output or recipe.output_dir / "reading" / options.source
    with output_of_one_run(folder, recipe.training.get("use_cpu", False)):
        _read_directions(recipe, options, folder)


def _read_directions(recipe: Recipe, options: ReadingOptions, folder: Path) -> None:
    state = PartialState()
    tokenizer = load_tokenizer(recipe)
    fitted_on, held_out = rows_to_read(recipe, tokenizer, options)
    with without_engine():
        base = load_base(recipe).eval()
    layers = resolve_layers(options.layers or f"0-{depth_of(base) - 1}", depth_of(base))
    speakers = adapters_of(recipe, options) if options.source == "adapters" else {}
    reader = Reader(
        with_adapters(base, speakers),
        options.source,
        options.tokens,
        layers,
        pad_id(tokenizer),
        recipe.method.max_response_tokens,
    )
    fits = tuple(dict.fromkeys((options.fit, *options.compare)))
    how = {"batch_size": recipe.training_value("per_device_train_batch_size"), "state": state}
    fitted = fit(reader, fitted_on, fits, seed=recipe.training_value("seed"), **how)
    measured = measure(reader, held_out, fitted.vectors, **how)
    described = described_by(recipe, options, reader.model, speakers)
    described |= {"data_sha256": rows_hash(fitted_on), "contrasts": str(fitted.contrasts)}
    directions = Directions(reader.layers, fitted.vectors[options.fit], described)
    evidence = evidence_of(fitted, measured, reader.layers)
    evidence["made_with"] = described | {"held_out_pairs": len(held_out)}
    if options.effect:
        evidence["effect"] = effect_of(recipe, options, reader, directions, held_out)
    if state.is_main_process:
        write(folder, directions, evidence)
    state.print(f"{evidence_text(evidence)}\n\ndirections: {folder}")


def described_by(
    recipe: Recipe,
    options: ReadingOptions,
    model: PreTrainedModel | PeftModel,
    speakers: Mapping[str, str],
) -> dict[str, str]:
    """Return the metadata of the directions: the model, the data's name and how it was read."""
    return {
        "model": base_name(model),
        "model_type": model.config.model_type,
        "depth": str(depth_of(model)),
        "data": recipe.data.dataset_name or "a mixture",
        "source": options.source,
        "tokens": options.tokens,
        "fit": options.fit,
        "seed": str(recipe.training_value("seed")),
        "max_response_tokens": str(recipe.method.max_response_tokens),
        **{f"adapter_{side}": path for side, path in speakers.items()},
    }


def effect_of(
    recipe: Recipe,
    options: ReadingOptions,
    reader: Reader,
    directions: Directions,
    held_out: Dataset,
) -> dict[str, Any]:
    """Return the adapter's effect on predictions (nats) and the share that directions explain."""
    layers = resolve_layers(options.effect, depth_of(reader.model))
    some = held_out.select(range(min(options.effect_pairs, len(held_out)))).to_list()
    steering = candidates(directions.only(layers))
    effect = effect_on_predictions(
        reader, some, steering, recipe.training_value("per_device_train_batch_size")
    )
    return {"nats": effect.whole, "explained": effect.explained()}


def rows_to_read(recipe: Recipe, tokenizer, options: ReadingOptions) -> tuple[Dataset, Dataset]:
    """Return rows to fit on, and held-out rows: the test split, or a part of the training rows."""
    instructed = options.source == "instructions"
    raise_problems(instruction_problems(recipe.method.instructions) if instructed else [])
    rows = train_rows(recipe, tokenizer, step=2, instructed=instructed)
    named = known_held_out_split(recipe) not in (None, HELD_OUT)  # a share of prompts is too few
    held_out = test_rows(recipe, tokenizer, instructed=instructed) if named else None
    order = np.random.default_rng(recipe.training_value("seed")).permutation(len(rows))
    if held_out is None:
        if len(rows) < HELD_OUT_SHARE:
            raise ValueError(
                f"{len(rows)} rows are too few to hold any out; give at least {HELD_OUT_SHARE}, "
                "or a dataset_test_split."
            )
        held_out = rows.select(np.sort(order[: len(rows) // HELD_OUT_SHARE]))
        order = order[len(rows) // HELD_OUT_SHARE :]
    return rows.select(np.sort(order[: options.rows])), held_out


def adapters_of(recipe: Recipe, options: ReadingOptions) -> dict[str, str]:
    """Return the folder of each side's adapter, or `base`: as given, or the recipe's teachers."""
    paths = {}
    for side in ("positive", "negative"):
        given = getattr(options, side) or getattr(recipe.teachers, side)
        paths[side] = str(given or recipe.output_dir / "teachers" / side)
        if paths[side] != BASE and not given and not Path(paths[side]).exists():
            raise ValueError(
                f"no {side} adapter: {paths[side]} does not exist. Give --{side} with the folder "
                f"of an adapter or with {BASE!r}, or train the recipe's teachers first."
            )
    if len(set(paths.values())) == 1:
        raise ValueError(f"both sides are {paths['positive']}: their difference would be zero.")
    return paths


def with_adapters(base: nn.Module, paths: dict[str, str]) -> nn.Module:
    """Return `base` with an adapter a side; a side that is the base itself gets none."""
    model = base
    for side, path in paths.items():
        if path == BASE:
            continue
        check_same_base(path, base_name(base))
        model = put_adapter(model, path, side)
    return model.eval()


def evidence_of(fitted: Fitted, measured: Measured, layers: tuple[int, ...]) -> dict[str, Any]:
    """Return all figures of the table, each a list over layers."""
    return {
        "layers": list(layers),
        "rms": fitted.rms.tolist(),
        "norm": {
            name: (vectors.norm(dim=-1) / fitted.rms).tolist()
            for name, vectors in fitted.vectors.items()
        },
        "separability": measured.separability,
        "explained": measured.explained,
        "halves": {
            name: cosines(*(half[name] for half in fitted.halves)) for name in fitted.vectors
        },
        "agreement": {
            f"{first} and {second}": cosines(fitted.vectors[first], fitted.vectors[second])
            for first, second in combinations(fitted.vectors, 2)
        },
    }


def rows_hash(rows: Dataset) -> str:
    """Return the SHA-256 of the ids that directions are fitted to, whatever file they are from."""
    digest = hashlib.sha256()
    for row in rows:
        ids = {name: row[name] for name in sorted(row) if name.endswith("_ids")}
        digest.update(json.dumps(ids).encode())
    return digest.hexdigest()


def write(folder: Path, directions: Directions, evidence: dict[str, Any]) -> None:
    directions.save(folder)
    write_result(folder / EVIDENCE_FILE, "rahf directions", evidence)
    write_text(folder / "evidence.md", evidence_text(evidence) + "\n")
    evidence_chart(evidence, folder / "evidence.png")
