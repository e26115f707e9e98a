"""The stages of a recipe as passes through the decoder: which view and rows, how deep, how often.

The same passes as in `teachers.py` and `alignment.py`, without torch; a test holds the two
together. Knows recipes; knows no FLOPs and no bytes.
"""

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from rahf.models.scoring import SCORED_AT_ONCE
from rahf.plan.case import Case
from rahf.plan.lengths import Extent
from rahf.plan.work import Pass, Upper, from_trunk
from rahf.recipe.method_options import MethodOptions
from rahf.recipe.methods import View, Views

SIDES = {"chosen": ("chosen",), "rejected": ("rejected",)}
BOTH = ("chosen", "rejected")
SHIFTED = ("positive", "negative")

EVAL_BATCH = TRAIN_BATCH = 8
"""Rows of a batch by transformers' defaults."""

Extents = Callable[[str, tuple[str, ...], int | None, int], Extent]


class Stage(NamedTuple):
    """One stage: its passes in one process for one batch, and how many such batches there are."""

    name: str
    steps: int | None  # None: the number of rows would have to be known
    batches: int  # a step and process
    usual: tuple[Pass, ...]  # with rows of the usual length, for work
    longest: tuple[Pass, ...]  # with the longest rows, for memory
    adapted: int  # LoRA blocks on the model, all adapters together
    trained: int  # LoRA blocks that are trained
    full: int  # parameters of teachers that are models of their own
    sampled: Pass | None = None  # retained texts that the reference writes before the first step
    kept: float | None = None  # hidden states that target_cache keeps; None: not known


def stages_of(case: Case) -> tuple[Stage, ...]:
    """Return the stages of the recipe that a model is run in, evaluation omitted."""
    made = []
    for name in case.recipe.stages:
        if name in case.recipe.method.facts.teachers:
            made.append(_teacher(case, name))
        elif name == "directions":
            made.append(_directions(case))
        elif name == "alignment":
            made.append(_alignment(case))
    return tuple(made)


def _teacher(case: Case, name: str) -> Stage:
    training = case.recipe.teacher_training
    batch = training.get("per_device_train_batch_size", TRAIN_BATCH)

    def passes(extents: Extents) -> tuple[Pass, ...]:
        layers = case.decoder.layers
        if name == "preferred":
            # Both responses, read by the base too.
            count = 2 * batch
            width, response = _of_pairs(case, extents, "prompt", None, count)
            common = {"columns": response, "scored": response}
            return (
                Pass("base", count, width, layers, False, False, **common),
                Pass(name, count, width, layers, True, True, below=case.first, **common),
            )
        if name == "contrast":
            # Both responses, each under the instruction that fits and under the other one.
            count = 4 * batch
            extent = _of_pairs(case, extents, "positive_prompt", None, count)
        else:
            side = {"positive": "chosen", "negative": "rejected"}[name]
            count = batch
            extent = extents("prompt", (side,), None, 1 if case.packed else count)
        width, response = extent
        only = Pass(name, count, width, layers, True, True, response, response)
        return (only._replace(below=case.first),)

    adapted = case.decoder.layers - case.first
    return _stage(case, name, training, _stage_rows(case), batch, passes, adapted, adapted, 0)


def _directions(case: Case) -> Stage:
    """Return the frozen passes of the positive and the negative view over a sample of the
    responses.
    """
    training, method = case.recipe.training, case.recipe.method
    batch = training.get("per_device_train_batch_size", TRAIN_BATCH)
    responses = _responses(case)
    sampled = method.mean_responses if responses is None else min(method.mean_responses, responses)
    training = {"max_steps": ceil(ceil(sampled / case.launch.processes) / batch)}

    def passes(extents: Extents) -> tuple[Pass, ...]:
        return _from_trunk(case, [_states(case, view, batch, extents) for view in SHIFTED])

    adapters, full = _teachers_held(case, both=True)
    adapted = case.top - case.first + adapters
    return _stage(case, "directions", training, responses, batch, passes, adapted, 0, full)


def _alignment(case: Case) -> Stage:
    training, method = case.recipe.training, case.recipe.method
    batch = training.get("per_device_train_batch_size", TRAIN_BATCH)
    asked, views = method.facts.contrasts_views and method.shift == "token", _asked(case)
    responses = _responses(case)
    share = _computed_share(case, responses, batch) if method.target_cache else 1

    def passes(extents: Extents) -> tuple[Pass, ...]:
        frozen = [
            _states(case, view, batch, extents)._replace(share=share)
            for view in ("reference", *views)
        ]
        policy = _states(case, "policy", batch, extents)
        # target_cache keeps states of the frozen views, not the trunk.
        together = [frozen, [policy]] if method.target_cache else [[*frozen, policy]]
        made = (one for passes in together for one in _from_trunk(case, passes))
        return (*made, *_held_out(case, extents))

    adapters, full = _teachers_held(case, both=asked)
    policy = (case.top if method.reference == "base" else case.decoder.layers) - case.first
    blocks = policy + adapters, case.top - case.first
    stage = _stage(case, "alignment", training, responses, batch, passes, *blocks, full)
    kept = _kept(case, responses, asked) if method.target_cache else None
    return stage._replace(kept=kept, sampled=_sampled(case))


def _sampled(case: Case) -> Pass | None:
    """Return the retained texts that each process samples, every token with its logits; None where
    no term reads them, or a file holds them.
    """
    method = case.recipe.method
    if not method.reads_retained or method.retain_dataset_name:
        return None
    # The first token is given. Each further token is one forward pass, with the keys and values of
    # those before it kept.
    read, adapted = method.retain_tokens - 1, method.reference != "base"
    layers = case.decoder.layers
    return Pass("sampling", method.retain_rows, read, layers, adapted, False, columns=read)


def _computed_share(case: Case, responses: int | None, batch: int) -> float:
    """Return the share of the steps that read the frozen views. These are the steps of the first
    epoch, where the number of rows is known; all steps, where a term reads the reference's
    predictions.
    """
    if case.recipe.method.compares_predictions:
        return 1
    training, processes = case.recipe.training, case.launch.processes
    once = training | {"max_steps": -1, "num_train_epochs": 1}
    steps = steps_of(training, responses, batch, processes)
    epoch = steps_of(once, responses, batch, processes)
    return 1 if steps is None or epoch is None else min(1, epoch / steps)


def _kept(case: Case, responses: int | None, both: bool) -> float | None:
    """Return the number of hidden states that the cache keeps: those of the reference, and the
    shift where it is per token. Where a term reads the reference's predictions, only those of
    retained texts are kept.
    """
    method = case.recipe.method
    retained = method.retain_rows * method.retain_tokens if method.reads_retained else 0
    if method.compares_predictions:
        return retained * len(case.layers)
    if responses is None:
        return None
    sides = SIDES.get(method.response_source, BOTH)
    _, response = case.lengths.usual("prompt", sides, method.max_response_tokens, 1)
    tail = method.tail_tokens if method.positions == "response_and_tail" else 0
    states = responses * (response + tail) * (2 if both else 1)
    return (states + retained) * len(case.layers)


def _views(case: Case) -> Views:
    method = case.recipe.method
    return method.facts.views(method.reference)


def _asked(case: Case) -> list[str]:
    """Return the views that a step reads beside the reference: those that are not the reference
    itself.
    """
    views, method = _views(case), case.recipe.method
    if method.shift == "mean" or not method.facts.contrasts_views:
        return []
    return [name for name in SHIFTED if getattr(views, name) != views.reference]


def _states(case: Case, name: str, batch: int, extents: Extents) -> Pass:
    """Return a pass that reads hidden states, and predictions where a term does."""
    method = case.recipe.method
    view = View("reference", name) if name == "policy" else getattr(_views(case), name)
    aligned = method.max_response_tokens
    whole = view.rows == "reference" and _reads_responses(method)
    width, response = _of_responses(case, view, batch, extents, None if whole else aligned)
    rows, alone = batch, width
    recorded = _of_responses(case, view, batch, extents, aligned).response if whole else response
    if method.positions == "response_and_tail":
        recorded += method.tail_tokens
    # What target_cache keeps of retained texts is computed once, and beside no response.
    plain = name == "policy" or (name == "reference" and not method.target_cache)
    if plain and method.reads_retained:
        # A retained text beside every response, padded to the same width or packed.
        rows, retained = 2 * batch, method.retain_tokens
        width = (width + retained) / 2 if case.packed else max(width, retained)
        recorded = (recorded + retained) / 2
    scored = _scored(case, name, response)
    upper = None
    if case.packed and scored and rows > batch and not method.compares_retained:
        # Retained texts, which nothing predicts, end at the top target layer.
        upper = Upper(case.decoder.layers - case.top, batch, alone)
    return Pass(
        name,
        rows,
        width,
        depth=case.decoder.layers if scored or not case.early_exit else case.top,
        adapted=view.teacher is not None,
        trained=name == "policy",
        columns=scored,
        scored=scored,
        recorded=recorded * len(case.layers),
        upper=upper,
    )


def _from_trunk(case: Case, passes: Sequence[Pass]) -> tuple[Pass, ...]:
    read = [getattr(_views(case), each.name, None) for each in passes]  # None: by the policy
    return from_trunk(passes, case.first, [not view or view.rows == "reference" for view in read])


def _reads_responses(method: MethodOptions) -> bool:
    """Return whether a term reads the predictions of responses, which are complete then."""
    diverges = method.kl_weight and method.kl_rows == "responses"
    return bool(diverges or method.sft_weight or method.dpo_weight)


def _of_responses(case: Case, view: View, batch: int, extents: Extents, cut: int | None) -> Extent:
    """Return a row of a batch of responses, each cut after `cut` tokens."""
    method = case.recipe.method
    prompt = "prompt" if view.rows == "reference" else f"{view.rows}_prompt"
    if method.pairs_together:
        return _of_pairs(case, extents, prompt, cut, batch)
    sides = SIDES.get(method.response_source, BOTH)
    return extents(prompt, sides, cut, 1 if case.packed else batch)


def _of_pairs(case: Case, extents: Extents, view: str, cut: int | None, rows: int) -> Extent:
    """Return a row of a batch that has both responses of its pairs: packed, they share their
    prompt.
    """
    if not case.packed:
        return extents(view, BOTH, cut, rows)
    width, response = extents(view, BOTH, cut, 1)
    return Extent((width + response) / 2, response)


def _scored(case: Case, name: str, response: float) -> float:
    """Return tokens of a row whose logits a term reads."""
    method = case.recipe.method
    if name not in ("reference", "policy"):
        return 0
    if method.dpo_weight:
        return response
    if method.kl_weight:
        return method.retain_tokens if method.kl_rows == "retain" else response
    return response if method.sft_weight and name == "policy" else 0


def _held_out(case: Case, extents: Extents) -> tuple[Pass, ...]:
    """Return both sides of the held-out pairs at the end of the alignment, for the preference
    accuracy.
    """
    if case.recipe.data.dataset_test_split is None and not case.recipe.data.test_share:
        return ()
    pairs = case.recipe.training.get("per_device_eval_batch_size", EVAL_BATCH)
    width, response = _of_pairs(case, extents, "prompt", None, 2 * pairs)
    rows = 2 * max(1, min(pairs, int(SCORED_AT_ONCE / (2 * response))))
    depth = case.decoder.layers
    return (Pass("held-out", rows, width, depth, True, False, response, response, counted=False),)


def _teachers_held(case: Case, both: bool) -> tuple[int, int]:
    """Return the LoRA blocks of the teachers on the model, and the parameters of teachers that are
    full models.
    """
    method = case.recipe.method
    named = set(method.facts.teachers) if both else set()
    named |= {method.reference} - {"base"}
    given = [getattr(case.recipe.teachers, name) for name in named]
    full = sum(path is not None and _is_model(path) for path in given)
    decoder = case.decoder
    parameters = decoder.embedding_parameters + case.top * decoder.block_parameters
    return (len(named) - full) * (decoder.layers - case.first), full * parameters


def _is_model(path: str) -> bool:
    return (Path(path) / "config.json").is_file() and not (
        Path(path) / "adapter_config.json"
    ).is_file()


def _stage_rows(case: Case) -> int | None:
    """Return the number of pairs that one stage is trained on."""
    halved = case.recipe.data.split_between_stages
    return case.rows // 2 if halved and case.rows is not None else case.rows


def _responses(case: Case) -> int | None:
    rows = _stage_rows(case)
    per_pair = 2 if case.recipe.method.response_source == "both" else 1
    return None if rows is None else rows * per_pair


def _stage(
    case: Case,
    name: str,
    training: dict[str, Any],
    items: int | None,
    batch: int,
    passes: Callable[[Extents], tuple[Pass, ...]],
    adapted: int,
    trained: int,
    full: int,
) -> Stage:
    lengths = case.lengths

    def longest(view: str, sides: tuple[str, ...], cut: int | None, _: int) -> Extent:
        return lengths.longest(view, sides, cut)

    batches = training.get("gradient_accumulation_steps", 1)
    steps = steps_of(training, items, batch, case.launch.processes)
    usual = tuple(made for made in passes(lengths.usual) if made.counted)
    return Stage(name, steps, batches, usual, passes(longest), adapted, trained, full)


def steps_of(training: dict[str, Any], items: int | None, batch: int, processes: int) -> int | None:
    """Return the optimiser steps, counted as transformers does: the last, smaller batch is a batch,
    the last, smaller accumulation a step. None where the number of items decides and is not known.
    """
    if training.get("max_steps", -1) > 0:
        return training["max_steps"]
    if items is None:
        return None
    batches = ceil(ceil(items / batch) / processes)
    updates = max(1, ceil(batches / training.get("gradient_accumulation_steps", 1)))
    return ceil(training.get("num_train_epochs", 3) * updates)
