"""The header of a model card, which the Hub reads: licence, base, data sets, tags, results.

Knows the files of a run and the cache of the Hub; sends no request.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from rahf.artifacts import expanded
from rahf.report.escaping import printable

_FILE_ENDINGS = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt", ".yaml", ".zip")

GENERATION = "text-generation"


class Measured(NamedTuple):
    """One figure of `metrics.json` as the Hub shows it."""

    key: str
    metric: str  # its type on the Hub
    name: str


_OF_PAIRS = (
    Measured("preference_accuracy", "accuracy", "preference accuracy"),
    Measured("preference_margin", "margin", "preference margin (nats per token)"),
)
_OF_ANSWERS = (Measured("judged_mean", "judge_score", "mean score of the judge"),)
_OF_TEXT = (Measured("unrelated_loss", "cross_entropy", "cross entropy (nats per token)"),)
_OF_STATES = (
    Measured("eval_repr/reached", "reached", "share of the shift reached"),
    Measured("eval_repr/cosine", "cosine", "cosine to the shift"),
)


def adapter_header(
    recipe: Mapping[str, Any], metrics: Mapping[str, Any], title: str, tags: Sequence[str]
) -> ModelCardData:
    """Return the header of an adapter's card; what is not known is left out.

    Args:
        title: of the card.
        tags: beside those of every adapter of this package.
    """
    base = recipe["model_name_or_path"]
    results = list(eval_results(recipe, metrics))
    return ModelCardData(
        library_name="peft",
        license=licence_of(base),
        base_model=hub_name(base),
        datasets=[name for name in map(hub_name, data_names(recipe)) if name] or None,
        tags=["rahf", "lora", "representation-alignment", *map(printable, tags)],
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        pipeline_tag=GENERATION,
        model_name=printable(title),
        eval_results=results or None,
    )


def data_names(recipe: Mapping[str, Any]) -> list[str]:
    """Return the names of the data sets of a recipe; empty for pairs that Python code made."""
    given = recipe.get("dataset_name")
    return [given] if given else [part["path"] for part in recipe.get("datasets") or ()]


def hub_name(name: str) -> str | None:
    """Return a name that may be a repository's on the Hub; None for a file, a folder or text."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    is_file = name.endswith(_FILE_ENDINGS) or Path(name).exists()
    return name if "/" in name and not is_file else None


def licence_of(base: str) -> str | None:
    """Return the licence in the base's own card, in its folder or in the cache of the Hub."""
    card = expanded(base) / "README.md"
    if hub_name(base):
        cached = try_to_load_from_cache(base, "README.md")
        card = Path(cached) if isinstance(cached, str) else card
    if not card.is_file():
        return None
    found = ModelCard.load(card, ignore_metadata_errors=True).data.license
    return found if isinstance(found, str) else None


def eval_results(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> Iterator[EvalResult]:
    """Yield the held-out figures of the policy that are finite numbers."""
    names = ", ".join(data_names(recipe)) or "pairs of the training script"
    pairs = (names, None if recipe.get("test_share") else recipe.get("dataset_test_split"))
    policy = {} if "models" not in metrics else metrics["models"].get("policy", {})
    evaluation = recipe.get("evaluation") or {}
    prompts = (evaluation.get("prompts") or f"prompts of {names}", None)
    unrelated = (evaluation.get("unrelated_text") or "unrelated text", None)
    for source, data, group in (
        (policy, pairs, _OF_PAIRS),
        (policy, prompts, _OF_ANSWERS),
        (policy, unrelated, _OF_TEXT),
        (metrics, pairs, _OF_STATES),
    ):
        for each in group:
            value = source.get(each.key)
            if isinstance(value, int | float) and math.isfinite(value):
                judge = f", {policy['judge']}" if group is _OF_ANSWERS and "judge" in policy else ""
                yield _result(data, each._replace(name=each.name + judge), value)


def _result(data: tuple[str, str | None], measured: Measured, value: float) -> EvalResult:
    name, split = data
    # A path of this machine tells others no more than its last part.
    shown = printable(Path(name).name if name.startswith(("/", ".", "~")) else name)
    return EvalResult(
        task_type=GENERATION,
        dataset_type=hub_name(name) or shown,  # results of one type are one data set to the Hub
        dataset_name=shown,
        dataset_split=split,
        metric_type=measured.metric,
        metric_name=printable(measured.name),
        metric_value=value,
    )
