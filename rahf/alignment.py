"""Views and terms joined: a model and a batch give the loss of each response.

The frozen views give the targets of the policy's hidden states, and the terms measure how far the
states are from them. Knows no method: the table of methods names the views and the terms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rahf.data.contrast import Batch
from rahf.directions.protected import check_left, load_protected
from rahf.directions.vectors import Directions
from rahf.models.adapters import add_teachers, attach_policy, depth_of
from rahf.models.capture import Trunk, text_config
from rahf.models.packing import use_packed_attention
from rahf.models.trunk import shared_blocks
from rahf.objective import Progress, Target, layer_scale, outside, random_units, token_progress
from rahf.recipe.layers import resolve_layers
from rahf.recipe.method_options import MethodOptions
from rahf.terms import Evidence, Term, terms_of, values_of
from rahf.views import Frozen, FrozenViews, run_rows, views_of


class AlignmentOutput(NamedTuple):
    """Loss of each response, its terms, and the progress of the states."""

    loss: Float[Tensor, " responses"]  # weighted sum of the terms
    terms: dict[str, Float[Tensor, " responses"]]  # unweighted, detached
    progress: Progress
    of_responses: Progress | None  # the same of each response, in evaluation only


@dataclass(frozen=True)
class Alignment:
    """The objective on a model whose adapters are the policy and its teachers."""

    frozen_views: FrozenViews
    options: MethodOptions
    directions: Float[Tensor, "layers d_model"] | None = None  # a stored shift, at the layers
    # Where rejected responses are pushed in place of a shift, in units of alpha (RMU).
    point: Float[Tensor, "layers d_model"] | None = None
    # What the policy must not move along: an orthonormal basis per layer.
    protected: Float[Tensor, "layers basis d_model"] | None = None
    packed: bool = False  # whether all of the models take packed rows
    trunk_depth: int = 0  # blocks without an adapter that base, teachers and policy share

    @property
    def model(self) -> PeftModel:
        """Return the unwrapped model, policy active."""
        return self.frozen_views.model

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the target layers, ascending."""
        return self.frozen_views.layers

    @property
    def terms(self) -> tuple[Term, ...]:
        """Return the terms of the loss."""
        return terms_of(self.options)

    def towards(self, directions: Directions) -> "Alignment":
        """Return the same alignment with a stored shift in place of the views' own."""
        directions.check_width(self.model.config.get_text_config().hidden_size)
        frozen_views = replace(self.frozen_views, views=self.frozen_views.views.without_shift())
        freed = self.freed(directions)
        return replace(self, frozen_views=frozen_views, directions=freed.vectors)

    def freed(self, directions: Directions) -> Directions:
        """Return a stored shift at the layers, without what is protected."""
        shift = self.without_protected(directions.select(self.layers))
        return Directions(self.layers, shift, directions.metadata)

    def without_protected(
        self, shift: Float[Tensor, "layers d_model"]
    ) -> Float[Tensor, "layers d_model"]:
        """Return the part of one vector per layer that is outside the protected space.

        Raises:
            ValueError: nothing is left in any layer.
        """
        if self.protected is None:
            return shift
        left = outside(shift.unsqueeze(1), self.protected.to(shift.device)).squeeze(1)
        check_left(shift, left)
        return left

    def __call__(
        self, model: nn.Module, batch: Batch, elapsed: float = 1.0, frozen: Frozen | None = None
    ) -> AlignmentOutput:
        """Return the loss of each response of `batch`.

        Args:
            model: the policy as training calls it, wrapped.
            elapsed: share of the training's steps that is done, 0 to 1, for weights over time.
            frozen: outputs of the frozen views, where they are known already.
        """
        terms, rows = self.terms, batch["reference"]
        if not batch["retained_texts"]:
            terms = tuple(term for term in terms if term.rows != "retained")
        trunk = Trunk(self.trunk_depth) if frozen is None else None
        frozen = frozen or self.read_views(batch, trunk)
        target = self.target(batch, frozen)
        reads_logits = any(term.logits for term in terms)
        hidden, logits = run_rows(
            model, self.model, self.layers, rows, predictions=reads_logits, trunk=trunk
        )
        protected = None if self.protected is None else self.protected.to(hidden)
        evidence = Evidence(batch, hidden, target, logits, frozen.logits, protected)
        values = values_of(terms, evidence)
        loss = reduce(torch.add, [term.weight_at(elapsed) * values[term.name] for term in terms])
        detached = {name: value.detach() for name, value in values.items()}
        counts = None
        if "counts" in batch:  # False for rows that accelerate repeats to fill a batch
            counts = batch["counts"][batch["aligned_item"]]
        made, of_responses = token_progress(hidden.detach(), target, counts), None
        if not model.training:
            responses = len(batch["row"])
            of_rows = made.of_rows(rows["aligned_owner"], responses + batch["retained_texts"])
            of_responses = Progress(*(each[:, :responses] for each in of_rows))
        return AlignmentOutput(loss, detached, made.total(), of_responses)

    def read_views(self, batch: Batch, trunk: Trunk | None = None) -> Frozen:
        """Run the frozen views; the reference with its predictions where a term reads them.

        Args:
            trunk: kept for the policy's pass on the same batch.
        """
        predictions = any("reference" in term.logits for term in self.terms)
        trunk = trunk or Trunk(self.trunk_depth)
        return self.frozen_views.read(batch, predictions=predictions, trunk=trunk)

    def target(self, batch: Batch, frozen: Frozen) -> Target:
        """Return the targets of the policy's states, from the outputs of the frozen views."""
        responses, retained = len(batch["row"]), batch["retained_texts"]
        owner, reference = batch["reference"]["aligned_owner"], frozen.reference
        move = torch.zeros_like(reference)
        move[:, : batch["aligned_responses"]] = self._move(batch, frozen)
        scale = layer_scale(self.options.layer_scale, reference, move, owner, responses + retained)
        # A retained text has no shift: it is measured in the unit of the response beside it.
        scale = torch.cat([scale[:, :responses], scale[:, :retained]], 1)
        return Target(reference, move, scale)

    def _move(self, batch: Batch, frozen: Frozen) -> Tensor | float:
        """Return the move from the reference to the target, at the aligned response tokens."""
        alpha, aligned = self.options.alpha, batch["aligned_responses"]
        reference = frozen.reference[:, :aligned]
        if self.point is not None:
            owner = batch["reference"]["aligned_owner"][:aligned]
            target = alpha * self.point.to(reference).unsqueeze(1)
            rejected = batch["kinds"]["rejected"][owner].unsqueeze(-1)
            return torch.where(rejected, target - reference, 0.0)
        if self.directions is not None:
            return alpha * self.directions.to(reference.device).unsqueeze(1)
        if frozen.shift is None:  # every target is the reference itself
            return 0.0
        if self.protected is None:
            return alpha * frozen.shift
        return alpha * outside(frozen.shift, self.protected.to(frozen.shift))


def build_alignment(
    base: PreTrainedModel | PeftModel,
    options: MethodOptions,
    peft_config: LoraConfig,
    teachers: Mapping[str, str | Path | PreTrainedModel],
    directions: Directions | None = None,
    seed: int = 0,
) -> Alignment:
    """Put the policy and the teachers that the views need on `base`, and the objective on them.

    Args:
        teachers: adapter folders or full models by name; those that no view needs are ignored.
        directions: a stored shift.
        seed: decides the random vectors of RMU.

    Raises:
        ValueError: directions for a method that pushes responses away, or that do not fit.
    """
    method = options.facts
    if directions is not None and method.pushes_away:
        raise ValueError(
            f"method {options.method!r} reads no directions: omit them, or set a method that does."
        )
    views = views_of(options.method, options.reference, stored_shift=directions is not None)
    layers = resolve_layers(options.target_layers, depth_of(base))
    depth = layers[-1] + 1
    policy = attach_policy(base, peft_config, range(depth), teachers.get(options.reference))
    d_model = text_config(base).hidden_size
    full = add_teachers(policy, {name: teachers[name] for name in views.teachers()}, depth)
    models = cast(tuple[PreTrainedModel, ...], (policy.get_base_model(), *full.values()))
    alignment = Alignment(
        frozen_views=FrozenViews(policy, views, layers, full),
        options=options,
        point=random_units(layers, d_model, seed) if method.random_target else None,
        protected=load_protected(options.protect, layers, d_model) if options.protect else None,
        packed=options.packing and all(map(use_packed_attention, models)),
        trunk_depth=shared_blocks(policy, layers[0]),
    )
    return alignment if directions is None else alignment.towards(directions)
