"""Influence through teachers: a pair moves its teacher, the teacher the target, the target the
policy.

The policy minimises L2(p; t), whose targets depend on the teachers' parameters t. At its minimum
dp/dt = - H2^-1 d2 L2 / dp dt, so that a query f of the policy changes with a teacher as

    df/dt  =  - d/dt ( v . grad_p L2 ),    v = H2^-1 grad_p f

which is the gradient of an ordinary query of the teacher. The inner derivative is taken towards the
outputs of the frozen views first, and from there through each view's own forward pass. That the
policy starts as a copy of a teacher is not counted. Knows alignments; knows no curvature.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import reduce, send_to_device
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from rahf.alignment import Alignment
from rahf.data.contrast import Responses
from rahf.influence.aligned import by_pairs, response_losses
from rahf.influence.gradients import (
    Part,
    exact_attention,
    lora_parts,
    parameter_count,
    weights_of_parts,
)
from rahf.influence.hessian import UNUSED, flattened
from rahf.influence.objectives import Batch, in_batches, open_gate
from rahf.influence.trained import Subject, Training
from rahf.models.adapters import add_teachers, frozen_pass
from rahf.objective import row_mean
from rahf.pipeline.inputs import alignment_arguments
from rahf.recipe.methods import View
from rahf.report.progress import timed
from rahf.training.preparation import collator_for
from rahf.views import Frozen, FrozenViews, run_rows, views_of


class Cotangents(NamedTuple):
    """Derivatives of v . grad_p L2 towards the outputs of the frozen views on a batch."""

    reference: Tensor
    shift: Tensor | None  # of every token; None where the shift is one vector per layer
    logits: Tensor | None  # of the reference
    directions: Tensor | None  # towards the stored shift


def teacher_queries(
    subject: Subject,
    parts: Sequence[Part],
    solved: Float[Tensor, "queries parameters"],
    teachers: Mapping[str, Training],
    batch_size: int,
) -> dict[str, Float[Tensor, "queries parameters"]]:
    """Return the gradient of each query towards each teacher's parameters.

    Args:
        solved: v, of the policy.
        teachers: their trainings by name; those that move no target of the policy have zeros.
    """
    alignment = by_pairs(subject.alignment)
    views = _views_with_shift(subject, alignment, teachers)
    places = {name: lora_parts(views.model, name) for name in teachers}
    found = {
        name: solved.new_zeros(len(solved), parameter_count(its)) for name, its in places.items()
    }
    count = len(subject.rows)
    fixed = None if views.views.positive is None else alignment.directions
    mean = None if fixed is None else solved.new_zeros(len(solved), *fixed.shape)
    for batch in subject.objective.own_batches(batch_size):
        for query, vector in enumerate(solved):
            towards = _cotangents(alignment, parts, batch, vector / count)
            _add(found, query, _through_views(views, batch, towards, places))
            if mean is not None:
                mean[query] += towards.directions
    found = reduce(found, reduction="sum")
    if mean is not None:
        mean = reduce(mean, reduction="sum")
        _add_mean_shift(found, subject, views, places, mean, batch_size)
    return found


def _add(found: dict[str, Tensor], query: int, more: Mapping[str, Tensor]) -> None:
    for name, gradient in more.items():
        found[name][query] -= gradient


def _views_with_shift(
    subject: Subject, alignment: Alignment, teachers: Mapping[str, Training]
) -> FrozenViews:
    """Return the frozen views with their shift, whose teachers a stored shift has replaced."""
    options, frozen = alignment.options, alignment.frozen_views
    if alignment.directions is None or subject.training.recipe.method.shift != "mean":
        return frozen
    missing = {
        name: teacher.folder
        for name, teacher in teachers.items()
        if name not in frozen.model.peft_config
    }
    add_teachers(frozen.model, missing, frozen.layers[-1] + 1)
    return replace(frozen, views=views_of(options.method, options.reference, stored_shift=False))


def _cotangents(
    alignment: Alignment,
    parts: Sequence[Part],
    batch: Batch,
    vector: Float[Tensor, " parameters"],
) -> Cotangents:
    """Return the derivatives of `vector` . (gradient of the batch's loss)."""
    frozen = alignment.read_views(batch.inputs)
    leaves = [None if each is None else each.clone().requires_grad_() for each in frozen]
    fixed = alignment.directions
    directions = None if fixed is None else fixed.clone().requires_grad_()
    moved = replace(alignment, directions=directions)
    with exact_attention():
        per_response = response_losses(moved, batch, open_gate, Frozen(*leaves))
        loss = per_response.view(len(batch.names), -1).mean(1).sum()
        weights = weights_of_parts(parts)
        flat = flattened(torch.autograd.grad(loss, weights, create_graph=True, **UNUSED))
        wanted = [each for each in (*leaves, directions) if each is not None]
        found = iter(torch.autograd.grad(flat @ vector, wanted, **UNUSED))
    return Cotangents(*(None if each is None else next(found) for each in (*leaves, directions)))


def _through_views(
    views: FrozenViews, batch: Batch, towards: Cotangents, places: Mapping[str, Sequence[Part]]
) -> dict[str, Float[Tensor, " parameters"]]:
    """Return the gradients towards the teachers' parameters, through the views' forward passes."""
    found: dict[str, Tensor] = {}
    inputs, aligned = batch.inputs, batch.inputs["aligned_responses"]
    passes: list[tuple[View, Tensor, Tensor | None]] = []
    passes.append((views.views.reference, towards.reference, towards.logits))
    if towards.shift is not None:
        passes.append((views.views.positive, towards.shift, None))
        passes.append((views.views.negative, -towards.shift, None))
    for view, hidden, logits in passes:
        if view.teacher not in places:
            continue
        with speaking(views.model, view.teacher, places[view.teacher]):
            read = run_rows(
                views.model,
                views.model,
                views.layers,
                inputs[view.rows],
                predictions=logits is not None,
            )
            # A view of responses only may be read on a block that holds retained texts too.
            outputs = [read.hidden[:, :aligned] if hidden.shape[1] == aligned else read.hidden]
            towards_them = [hidden]
            if logits is not None:
                outputs.append(read.logits)
                towards_them.append(logits)
            gradient = torch.autograd.grad(
                outputs, weights_of_parts(places[view.teacher]), towards_them, **UNUSED
            )
        flat = flattened(gradient)
        found[view.teacher] = found.get(view.teacher, 0.0) + flat
    return found


def _add_mean_shift(
    found: dict[str, Tensor],
    subject: Subject,
    views: FrozenViews,
    places: Mapping[str, Sequence[Part]],
    mean: Float[Tensor, "queries layers d_model"],
    batch_size: int,
) -> None:
    """Add what goes through a shift that is the mean over responses, as `fit_mean_shift` draws
    them.
    """
    args = alignment_arguments(subject.training.recipe)
    responses = Responses(subject.rows, args.response_source, seed=args.seed)
    order = np.random.default_rng(args.seed).permutation(len(responses))[: args.mean_responses]
    collator = replace(collator_for(args, subject.tokenizer, packed=False), scored=())
    device = subject.objective.device
    for some in timed(in_batches(len(order), batch_size), "teachers"):
        items = [responses[index] for index in order[some.start : some.stop].tolist()]
        inputs = send_to_device(collator(items), device)
        for sign, view in ((1.0, views.views.positive), (-1.0, views.views.negative)):
            if view.teacher not in places:
                continue
            weights, rows = weights_of_parts(places[view.teacher]), inputs[view.rows]
            with speaking(views.model, view.teacher, places[view.teacher]):
                read = run_rows(views.model, views.model, views.layers, rows, predictions=False)
                owner, width = rows["aligned_owner"], read.hidden.shape[-1]
                flat = row_mean(read.hidden.transpose(1, 2).flatten(0, 1), owner, len(items))
                total = sign * flat.sum(1).view(-1, width) / len(order)
                for query, cotangent in enumerate(mean):
                    gradient = torch.autograd.grad(
                        total, weights, cotangent, retain_graph=True, **UNUSED
                    )
                    found[view.teacher][query] -= flattened(gradient)


@contextmanager
def speaking(model: PeftModel, adapter: str, parts: Sequence[Part]) -> Iterator[None]:
    """Run `model` as one of its adapters, with gradients towards that adapter only."""
    weights = weights_of_parts(parts)
    with frozen_pass(model, adapter), torch.enable_grad(), exact_attention():
        for weight in weights:
            weight.requires_grad_(True)
        try:
            yield
        finally:
            for weight in weights:
                weight.requires_grad_(False)
