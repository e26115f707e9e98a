"""A recipe's data without a training: shown, or put into the cache; its lengths are kept.

A later run reads the rows from the cache, so that no rank waits; `rahf plan` reads the lengths.
"""

import json
import time
from typing import Any

import pyarrow.compute as arrow
from datasets import Dataset

from rahf.artifacts import alone, write_text
from rahf.data.summary import as_figures, describe
from rahf.pipeline.inputs import load_tokenizer, measured_split, tokenized_split
from rahf.plan.lengths import LENGTHS_FILE, settings_of
from rahf.recipe.held_out import HELD_OUT
from rahf.recipe.recipe import Recipe

SAMPLE = 1000
"""Rows whose lengths are kept: evenly over their ranks by length, the longest among them."""


def describe_data(recipe: Recipe) -> str:
    """Return what became of each split, and a few rows with their mask."""
    tokenizer, parts = load_tokenizer(recipe), []
    for split in _splits(recipe):
        rows, report = tokenized_split(recipe, tokenizer, split)
        share = f" ({recipe.data.test_share:.0%} of the training prompts)"
        title = f"{split}{share if split == HELD_OUT else ''}"
        parts.append(f"{title}\n\n{describe(report, rows, tokenizer)}")
        parts += _keep_lengths(recipe, split, rows)
    return "\n\n".join(parts)


def data_figures(recipe: Recipe) -> dict[str, Any]:
    """Return what `rahf data --json` prints: {split: counts, lengths, dropped rows}."""
    tokenizer = load_tokenizer(recipe)
    found = {split: tokenized_split(recipe, tokenizer, split) for split in _splits(recipe)}
    for split, (rows, _) in found.items():
        _keep_lengths(recipe, split, rows)
    return {split: as_figures(report) for split, (_, report) in found.items()}


def _splits(recipe: Recipe) -> list[str]:
    return list(filter(None, (recipe.data.dataset_train_split, measured_split(recipe))))


def fill_cache(recipe: Recipe) -> str:
    """Tokenise every split into the cache; return one line per split with the place and the time.

    Raises:
        ValueError: another process writes into the output folder.
    """
    with alone(recipe.output_dir, wait=False):
        return _fill_cache(recipe)


def _fill_cache(recipe: Recipe) -> str:
    tokenizer, lines = load_tokenizer(recipe), []
    for split in _splits(recipe):
        started = time.perf_counter()
        rows, _ = tokenized_split(recipe, tokenizer, split)
        seconds = time.perf_counter() - started
        files = sorted({file["filename"] for file in rows.cache_files})
        place = f"in {', '.join(files)}" if files else "in memory"
        lines.append(f"{split}: {len(rows):,} rows in {seconds:.1f} s, {place}")
        lines += _keep_lengths(recipe, split, rows)
    return "\n".join(lines)


def _keep_lengths(recipe: Recipe, split: str, rows: Dataset) -> list[str]:
    """Write the lengths of the training split for `rahf plan`; return a line with the file."""
    if split != recipe.data.dataset_train_split:
        return []
    path = recipe.output_dir / LENGTHS_FILE
    write_text(path, lengths_text(recipe, rows))
    return [f"{split}: lengths for `rahf plan` in {path}"]


def lengths_text(recipe: Recipe, rows: Dataset) -> str:
    """Return the file that `rahf plan` reads: settings, number of rows, lengths of a sample."""
    columns = [name for name in rows.column_names if name.endswith("_ids")]
    table = rows.with_format("arrow")[:]
    lengths = [arrow.list_value_length(table[name]).to_pylist() for name in columns]
    ordered = sorted(zip(*lengths, strict=True), key=lambda row: (sum(row), row))
    last = len(ordered) - 1
    kept = min(SAMPLE, len(ordered))
    sample = [ordered[round(last * rank / max(1, kept - 1))] for rank in range(kept)]
    return json.dumps(
        {
            "settings": settings_of(recipe),
            "rows": len(rows),
            "columns": [name.removesuffix("_ids") for name in columns],
            "sample": sample,
        }
    )
