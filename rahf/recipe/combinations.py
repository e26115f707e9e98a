"""Which values of one section of a recipe do not go together: functions that return problems.

The types and limits of single values have been checked before (`options.py`).
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rahf.recipe.fields import describe_type, fits

if TYPE_CHECKING:
    from rahf.recipe.config import CompareOptions, DataOptions, MethodOptions


def pattern_problems(modules: str) -> list[str]:
    """Problems of modules that are given as a regular expression."""
    try:
        re.compile(modules)
    except re.error as error:
        return [
            f"lora_target_modules: {modules!r} is no regular expression ({error}); give one that "
            "matches whole names, a list of names, or all-linear"
        ]
    return []


def data_problems(data: "DataOptions") -> list[str]:
    problems = column_problems("columns", data.columns)
    if data.dataset_name is None and data.datasets is None:
        problems.append("no data: give dataset_name, or datasets for a mixture")
    if data.dataset_name is not None and data.datasets is not None:
        problems.append("dataset_name and datasets are both given: keep one of them")
    if data.datasets is not None and data.columns is not None:
        problems.append(
            "columns does not reach into a mixture: give columns inside the entries of datasets"
        )
    if data.max_prompt_length >= data.max_length:
        problems.append(
            f"max_prompt_length: {data.max_prompt_length} leaves no room for a response within "
            f"max_length {data.max_length}: lower the first or raise the second"
        )
    if data.datasets is not None:
        problems += ["datasets: the list is empty"] if not data.datasets else []
        problems += [
            line
            for index, part in enumerate(data.datasets)
            for line in part_problems(f"datasets[{index}]", part)
        ]
    return problems


def part_problems(where: str, part: Any) -> list[str]:
    """Problems of one entry of a mixture."""
    known = {
        "path": str,
        "name": str | None,
        "split": str,
        "columns": dict | None,
        "fraction": float,
    }
    if not isinstance(part, dict):
        return [f"{where}: {part!r} is not a mapping with the keys {', '.join(known)}"]
    problems = [
        f"{where}: unknown key {key!r}, known are {', '.join(known)}"
        for key in part
        if key not in known
    ]
    problems += [
        f"{where}.{key}: {part[key]!r} is not {describe_type(kind)}"
        for key, kind in known.items()
        if key in part and not fits(part[key], kind)
    ]
    if "path" not in part:
        problems.append(f"{where}: path is missing; it takes what dataset_name takes")
    if not problems:
        problems = column_problems(f"{where}.columns", part.get("columns"))
        if not 0 < part.get("fraction", 1) <= 1:
            problems.append(
                f"{where}.fraction: {part['fraction']} is out of range, it must be above 0 and at "
                "most 1"
            )
    return problems


def column_problems(where: str, columns: dict | None) -> list[str]:
    wanted = ("prompt", "chosen", "rejected")
    return [
        f"{where}: {key!r}: {value!r} does not map one of {', '.join(wanted)} to the name of a "
        "given column"
        for key, value in (columns or {}).items()
        if key not in wanted or not isinstance(value, str)
    ]


def source_problems(options: "MethodOptions") -> list[str]:
    """Problems of what the shift is read from."""
    method, problems = options.method, []
    owners = {"positive": "dual", "contrast": "scit", "preferred": "dpo_shift"}
    owner = owners.get(options.reference, method)
    if method != owner:
        problems.append(
            f"reference: {options.reference} is a teacher of method {owner}, not of {method}: set "
            f"reference: base or method: {owner}"
        )
    if options.pairs_together and options.response_source != "both":
        problems.append(
            f"pairs_together: with response_source: {options.response_source} a pair has one "
            "response: set pairs_together: false, or response_source: both"
        )
    if method == "direction" and options.directions is None:
        problems.append("method: direction needs directions, the path of stored directions")
    if method != "direction" and options.directions is not None:
        problems.append(
            f"directions: not read by method {method}: remove it, or set method: direction"
        )
    if options.alpha == 0:
        problems.append("alpha: 0 asks for no shift at all: give another number")
    if method in ("scit", "lorra"):
        problems += _instruction_problems(options.instructions)
    return problems


def _instruction_problems(instructions: dict) -> list[str]:
    texts = [instructions.get(side) for side in ("positive", "negative")]
    if set(instructions) != {"positive", "negative"}:
        given = ", ".join(map(str, instructions)) or "nothing"
        return [f"instructions: needs exactly the keys positive and negative, given: {given}"]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return ["instructions: positive and negative must both be text that is not empty"]
    if texts[0].strip() == texts[1].strip():
        return [
            "instructions: positive and negative are the same text, so their difference would be "
            "zero"
        ]
    return []


def term_problems(options: "MethodOptions") -> list[str]:
    """Problems of the optional terms."""
    problems = []
    if options.sft_weight > 0 and options.response_source == "rejected":
        problems.append(
            "sft_weight: needs chosen responses, and response_source is rejected: set sft_weight: "
            "0 or another response_source"
        )
    if options.dpo_weight > 0 and not options.pairs_together:
        problems.append(
            "dpo_weight: compares both responses of a pair, which must be in one batch: set "
            "pairs_together: true, or dpo_weight: 0"
        )
    uses = {
        f"retain_weight: {options.retain_weight}": options.retain_weight > 0,
        "kl_rows: retain": options.compares_retained,
    }
    problems += [
        f"{use} needs texts: set retain_rows above 0"
        for use, used in uses.items()
        if used and not options.retain_rows
    ]
    read = any(uses.values()) or options.chooses  # the choice reads it as neutral text
    if options.retain_dataset_name is not None and not read:
        problems.append(
            "retain_dataset_name: read by no term: set retain_weight above 0, or kl_weight above 0 "
            "with kl_rows: retain"
        )
    return problems


def cache_problems(options: "MethodOptions") -> list[str]:
    """Why what the frozen views say cannot be kept for later epochs."""
    problems = []
    if options.target_cache is not None and not options.target_cache.strip():
        problems.append("target_cache: is empty: give a folder, or leave it away")
    if not options.compares_predictions:
        if options.response_source == "random":
            problems.append(
                "target_cache: with response_source: random a response need not come again: set "
                "response_source: both, chosen or rejected, or leave target_cache away"
            )
        return problems
    if options.compares_retained:
        problems.append(
            "target_cache: keeps hidden states, and with kl_rows: retain the reference's "
            "predictions of retained texts are read in every step: set kl_rows: responses or "
            "kl_weight: 0, or leave target_cache away"
        )
    elif not options.retain_weight:
        given = " and ".join(name for name in ("kl_weight", "dpo_weight") if getattr(options, name))
        problems.append(
            f"target_cache: beside {given}, which reads predictions of the responses in every "
            "step, it keeps the states of retained texts alone, and there are none: set "
            f"retain_weight above 0, or {given} to 0, or leave target_cache away"
        )
    return problems


def comparison_problems(options: "CompareOptions", kinds: Sequence[str]) -> list[str]:
    """Problems of the rows of a comparison, of their trials, and of the points of their curves."""
    unnamed = [name for name in (*options.rows, *options.trials) if not isinstance(name, str)]
    if unnamed:
        return [f"rows: {name!r} is not text, which a row's name must be" for name in unnamed]
    problems = [
        f"rows: {name!r} begins with none of {', '.join(kinds)}"
        for name in options.rows
        if kind_of_row(name) not in kinds
    ]
    keys = [(f"rows.{name}", [given]) for name, given in options.rows.items()]
    keys += [(f"trials.{name}", given) for name, given in options.trials.items()]
    problems += [
        f"{place}: {given!r} is not a mapping of recipe keys to values"
        for place, several in keys
        for given in (several if isinstance(several, list) else [several])
        if not isinstance(given, dict)
    ]
    for name in options.trials:
        if name not in options.rows:
            problems.append(f"trials.{name}: there is no row of this name")
        elif kind_of_row(name) in ("base", "urial"):
            problems.append(f"trials.{name}: such a row has nothing to tune: remove it")
    counts = {len(given) for given in options.trials.values() if isinstance(given, list)}
    if len(counts) > 1 or 0 in counts:
        problems.append(
            "trials: every row gets equally many, at least one; given are "
            + ", ".join(f"{name}: {len(given)}" for name, given in options.trials.items())
        )
    if options.trials and not options.validation_share:
        problems.append("validation_share: 0 leaves nothing to choose among the trials on")
    if "base" not in map(kind_of_row, options.rows):
        problems.append("rows: needs base, which the others are held against")
    for name, values, kind in (
        ("seeds", options.seeds, int),
        ("strengths", options.strengths, (int, float)),
    ):
        right = all(isinstance(value, kind) and value >= 0 for value in values)
        if not values or not right or len(set(values)) < len(values):
            problems.append(f"{name}: {values} is not a list of different numbers, at least one")
    if 0 in options.strengths:
        problems.append("strengths: 0 is the base, which stands at the origin anyway: remove it")
    return problems


def kind_of_row(name: str) -> str:
    """What a row of a comparison is, by the beginning of its name."""
    return name.partition("-")[0]


def unread_problems(options: "MethodOptions") -> list[str]:
    """Options of rejected responses that are led away, given where none are."""
    untouched = {
        "rejected_weight": 1.0,
        "chosen_weight": 0.0,
        "similarity_weight": 0.0,
        "weights_over_time": "constant",
    }
    return [
        f"{name}: {getattr(options, name)} is not read by method {options.method}: remove it, or "
        "set method: circuit_breakers, rmu or repbend"
        for name, value in untouched.items()
        if getattr(options, name) != value
    ]


def led_away_problems(options: "MethodOptions") -> list[str]:
    """Problems of the methods that lead rejected responses away."""
    method, source, problems = options.method, options.response_source, []
    preset = "or take the published values: a recipe begins with them, in Python rahf.preset does"
    if options.layer_scale == "shift":
        problems.append(
            f"layer_scale: shift is the size of a shift that {method} does not ask for: set "
            f"layer_scale: none or rms, {preset}"
        )
    if source == "chosen":
        problems.append(
            f"response_source: chosen leaves {method} no rejected responses to lead away: set "
            "response_source: both or rejected"
        )
    if options.align_weight != 1:
        problems.append(
            f"align_weight: {options.align_weight} is not read by method {method}, which asks for "
            "no target: remove it"
        )
    if options.chosen_weight and source == "rejected":
        problems.append(
            "chosen_weight: needs chosen responses, and response_source is rejected: set "
            "chosen_weight: 0 or response_source: both"
        )
    problems += [
        f"{name}: auto is a choice about a shift, and {method} asks for none: give {what}"
        for name, what in (("alpha", "a number"), ("target_layers", "layers"))
        if getattr(options, name) == "auto"
    ]
    if method == "repbend" and not options.similarity_weight:
        problems.append(
            "similarity_weight: 0 lets repbend never begin: at the reference, where the policy "
            f"starts, no other term has a gradient; set it above 0, {preset}"
        )
    return problems


def batch_problems(options: "MethodOptions", batch_size: int, eval_batch_size: int) -> list[str]:
    """Problems of the method with the number of responses in a batch."""
    problems, together = [], options.pairs_together
    if options.dpo_weight and eval_batch_size % 2:
        problems.append(
            f"per_device_eval_batch_size: {eval_batch_size} is odd, so that the DPO term would "
            f"have half a pair: set it to {eval_batch_size + 1}, or dpo_weight: 0"
        )
    if together and batch_size % 2:
        unasked = " (dual begins with it)" if options.method == "dual" else ""
        without = ", which goes without the DPO term" if options.dpo_weight else ""
        problems.append(
            f"per_device_train_batch_size: {batch_size} is odd, so that pairs_together{unasked} "
            f"would tear a pair apart: set it to {batch_size + 1}, or pairs_together: "
            f"false{without}"
        )
    if options.similarity_weight and batch_size < (4 if together else 2):
        problems.append(
            f"per_device_train_batch_size: {batch_size} is too small for similarity_weight, which "
            f"compares rejected responses of one batch: set it to at least {4 if together else 2}"
        )
    return problems
