"""Results of a scoring as files: every pair, the top pairs of each query, a summary.

    FOLDER/scores.safetensors   total; by stage changes, dot products and self-influence
    FOLDER/queries.jsonl        by query its value, its top pairs, the ranks of its rivals
    FOLDER/summary.json         layers, agreement of the rivals, notes

Knows scores and a tokenizer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor

from rahf.artifacts import write_lines
from rahf.influence.baselines import Baselines, baselines, loss_difference
from rahf.influence.queries import Asked, Query
from rahf.influence.records import (
    agreement,
    detail_record,
    layer_histogram,
    query_records,
    rankings,
)
from rahf.influence.run import POLICY_STAGE, Fitted, Influence, Settings, details, fit_stage
from rahf.influence.strongest import strongest
from rahf.influence.trained import teachers_trained
from rahf.models.adapters import pad_id
from rahf.records.command_line import write_result
from rahf.training.state_files import written_atomically

SCORES_FILE = "scores.safetensors"
QUERIES_FILE = "queries.jsonl"
SUMMARY_FILE = "summary.json"

PLAUSIBLE = 1.0
"""Nats; no training sequence had a larger influence in arXiv 2308.03296."""


def rivals_of(
    fitted: Fitted,
    influence: Influence,
    queries: Sequence[Query],
    settings: Settings,
    validated_by: Path | None,
) -> Baselines:
    """Return the cheap rankings of the policy's pairs for the same queries.

    Args:
        validated_by: an adapter trained on validation pairs, for LossDiff.
    """
    subject, size = fitted.subject, settings.batch_size
    model, pad = subject.objective.model, pad_id(subject.tokenizer)
    scores = influence.stages[POLICY_STAGE].scores
    found = baselines(model, subject.rows, queries, pad, size, scores.seen)
    if validated_by is None:
        return found
    difference = loss_difference(subject.objective, scores.losses, validated_by, size)
    return found._replace(loss_diff=difference)


def write_results(
    folder: Path,
    fitted: Fitted,
    influence: Influence,
    asked: Asked,
    rivals: Baselines,
    settings: Settings,
    *,
    unit: str,
    top: int,
    explained: int,
) -> None:
    """Write the files of a scoring, of all ranks once.

    Args:
        top: pairs at each end of a query's list.
        explained: of these, the pairs with their sides, layers and tokens.
    """
    found = rankings(influence, rivals)
    best = strongest(influence.total, top)
    records = query_records(influence, asked.names, asked.values.tolist(), best, found)
    if explained:
        explain(records, fitted, influence, settings, explained)
    if not PartialState().is_main_process:
        return
    _write_scores(folder / SCORES_FILE, influence, rivals)
    write_lines(folder / QUERIES_FILE, records)
    unit = "dot product" if settings.curvature == "identity" else unit
    summary = {
        "adapter": str(fitted.subject.training.folder),
        "curvature": settings.curvature,
        "damping": settings.damping,
        "unit": unit,
        "pairs": {name: len(stage.rows) for name, stage in influence.stages.items()},
        "layers": layer_histogram(influence),
        "agreement": agreement(found),
        "notes": _notes(influence, unit),
    }
    write_result(folder / SUMMARY_FILE, "rahf influence score", summary)


def _notes(influence: Influence, unit: str) -> list[str]:
    """Return what a reader of the scores has to know, each once."""
    notes = [note for stage in influence.stages.values() for note in stage.notes]
    largest = float(influence.total.abs().max())
    if unit == "nats" and largest > PLAUSIBLE:
        notes.append(
            f"changes of up to {largest:.2g} nats are more than single pairs do: the training is "
            "short or far from a minimum, or the damping is too small. Read the order of the "
            "pairs, not the sizes"
        )
    return list(dict.fromkeys(notes))


def _write_scores(path: Path, influence: Influence, rivals: Baselines) -> None:
    tensors: dict[str, Tensor] = {"rows": torch.tensor(influence.rows), "total": influence.total}
    for name, stage in influence.stages.items():
        tensors[f"{name}.rows"] = torch.tensor(stage.rows)
        for what in ("changes", "products", "self_influence"):
            tensors[f"{name}.{what}"] = getattr(stage.scores, what)
    for name, values in rivals._asdict().items():
        if values is not None:
            tensors[f"rival.{name}"] = values
    with written_atomically(path) as staging:
        save_file({name: each.contiguous() for name, each in tensors.items()}, staging)


def explain(
    records: Sequence[dict[str, Any]],
    fitted: Fitted,
    influence: Influence,
    settings: Settings,
    count: int,
) -> None:
    """Add to the first and last `count` pairs of every query the stage that they act through most,
    with sides, layers and tokens.
    """
    wanted: dict[str, dict[int, list[int]]] = {name: {} for name in influence.stages}
    for query, record in enumerate(records):
        for pair in [*record["pairs"][:count], *record["pairs"][count:][-count:]]:
            stage = max(pair["through"], key=lambda name: abs(pair["through"][name]))
            wanted[stage].setdefault(query, []).append(pair["row"])
    teachers = teachers_trained(fitted.subject.training)
    for name, by_query in wanted.items():
        if by_query:
            known = name == POLICY_STAGE
            stage = fitted if known else fit_stage(teachers[name], name, settings)
            _add_details(records, stage, name, influence, by_query)


def _add_details(
    records: Sequence[dict[str, Any]],
    stage: Fitted,
    name: str,
    influence: Influence,
    by_query: Mapping[int, list[int]],
) -> None:
    for query, rows in by_query.items():
        found = details(stage, influence.stages[name], query, rows)
        for pair in records[query]["pairs"]:
            if pair["row"] in found and pair["row"] in rows:
                detail = detail_record(found[pair["row"]], name, stage.subject.tokenizer)
                pair["details"] = [detail]
