"""Models of a comparison, measured once: the measures are kept, whatever judge reads them.

Loads, measures and saves; knows no judge.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from rahf.artifacts import alone, identity_of, read_object, write_json
from rahf.evaluation.measures import HeldOut, measure_model
from rahf.judges.judge import prompt_hash
from rahf.models.adapters import put_adapter


def measure_kept(
    path: Path,
    load_base: Callable[[], nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    adapter: Path | None,
    strengths: Sequence[float],
    progress: str,
) -> list[dict[str, Any]]:
    """Return the measures in `path` at each strength; missing ones are measured and added.

    Args:
        load_base: called only where something is missing.
        adapter: folder of the adapter on the base; None: the base, whose strength is 0.
        progress: text to print before a model is loaded.
    """
    made_with = {
        "max_new_tokens": held_out.max_new_tokens,
        "adapter": identity_of(adapter) if adapter else None,
        "asked": prompt_hash(
            json.dumps([held_out.chats, list(held_out.texts), held_out.form.name])
        ),
    }
    with alone(path):
        known = _known(path, made_with)
        missing = [strength for strength in strengths if strength not in known]
        if missing:
            print(progress, flush=True)
            model = load_base()
            if adapter:
                model = put_adapter(model, adapter)
            found = measure_model(model.eval(), tokenizer, held_out, missing)
            known |= {each.strength: each.as_dict() for each in found}
            write_json(path, {"made_with": made_with, "measures": list(known.values())})
    return [known[strength] for strength in strengths]


def _known(path: Path, made_with: Mapping[str, Any]) -> dict[float, dict[str, Any]]:
    """Return the measures of the same weights on the same prompts and texts, by strength."""
    if not path.exists():
        return {}
    record = read_object(path, made_with=dict, measures=list)
    before = {"adapter": made_with["adapter"]} | record["made_with"]
    for gone in ("strengths", "weights"):  # of earlier versions
        before.pop(gone, None)
    if before != made_with:
        return {}
    return {point["strength"]: point for point in record["measures"]}
