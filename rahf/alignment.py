"""Model and batch to loss: the frozen views say where to go, the policy is told how far it is.

`views_of` and `terms_of` are the places that know the methods; from there on DUAL, SCIT, LoRRA,
stored directions and their neighbours are the same flow with other rows, adapters and terms (DESIGN
of the flow: README).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device
from jaxtyping import Float
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rahf.data.contrast import Batch, Rows, first_rows, packed_tokens_until, row_count
from rahf.directions.vectors import Directions, MeanFitter
from rahf.models.adapters import add_teachers, attach_policy, depth_of, frozen_pass
from rahf.models.capture import record
from rahf.models.likelihood import forward_columns, model_inputs, response_logits
from rahf.models.packing import use_packed_attention
from rahf.objective import (
    Asked,
    Progress,
    RowKind,
    Term,
    dissimilarity,
    layer_scale,
    progress,
    random_units,
    row_loss,
)
from rahf.recipe.layers import resolve_layers
from rahf.recipe.method_options import MethodOptions
from rahf.terms import prediction_terms, scored_tokens

CHOSEN_SHARE = {"chosen": 1.0, "both": 0.5, "random": 0.5}
REJECTED_SHARE = {"rejected": 1.0, "both": 0.5, "random": 0.5}


class View(NamedTuple):
    """Who says which rows."""

    rows: str  # block of the batch: reference, positive or negative
    teacher: str | None  # adapter or full model; None: the base


class Views(NamedTuple):
    """The three views of a response; without a shift that is read from views, the first alone."""

    reference: View
    positive: View | None
    negative: View | None

    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers that the views need, each once."""
        views = (self.positive, self.negative, self.reference)
        named = (view.teacher for view in views if view is not None)
        return tuple(dict.fromkeys(name for name in named if name is not None))


def views_of(method: str, reference: str) -> Views:
    """The views of a method (paper, section 3.2), with the chosen reference."""
    by_method = {
        "dual": (View("reference", "positive"), View("reference", "negative")),
        "scit": (View("positive", "contrast"), View("negative", "contrast")),
        "dpo_shift": (View("reference", "preferred"), View("reference", None)),
        "lorra": (View("positive", None), View("negative", None)),
    }
    shifting = by_method.get(method, (None, None))
    return Views(View("reference", None if reference == "base" else reference), *shifting)


def views_asked(options: MethodOptions, stored: bool) -> Views:
    """The views that training asks: of a stored shift the reference alone."""
    return views_of("direction" if stored else options.method, options.reference)


def terms_of(options: MethodOptions) -> tuple[Term, ...]:
    """The terms that are distances of states, weighted and timed as the method says."""
    led_away = {"circuit_breakers": "relu_cosine", "rmu": options.distance, "repbend": "away"}
    crossing = options.weights_over_time == "crossing"
    falling, rising = ("falling", "rising") if crossing else ("constant", "constant")
    retain = Term("retain", "retained", options.distance, options.retain_weight, rising)
    if options.method not in led_away:
        return Term("align", "responses", options.distance, options.align_weight), retain
    distance, weight = led_away[options.method], options.rejected_weight
    rejected = Term("rejected", "rejected", distance, weight, falling)
    chosen = Term("chosen", "chosen", options.distance, options.chosen_weight, rising)
    return (rejected, chosen, retain) if options.chosen_weight else (rejected, retain)


class Seen(NamedTuple):
    """What one pass shows of a block of rows."""

    hidden: Float[Tensor, "layers tokens d_model"]  # at the aligned tokens
    logits: Float[Tensor, "scored vocab"] | None  # that predict the scored tokens, if asked


class Frozen(NamedTuple):
    """What the frozen views say of a batch: the same for every alpha and in every epoch."""

    reference: Float[Tensor, "layers tokens d_model"]  # responses, then retained texts
    shift: Float[Tensor, "layers response_tokens d_model"] | None  # positive minus negative view
    logits: Float[Tensor, "scored vocab"] | None = None  # of the reference, where a term reads them


class AlignmentOutput(NamedTuple):
    """Loss of each response and what it is made of."""

    loss: Float[Tensor, " responses"]  # weighted sum of the terms
    terms: dict[str, Float[Tensor, " responses"]]  # unweighted, detached
    progress: Progress


class Alignment:
    """The objective on a model whose adapters are the policy and its teachers.

    Args:
        model: unwrapped PEFT model, policy active.
        layers: target layers, ascending.
        teachers: full models given in place of adapters, by view name.
        packed: whether all of the models take packed rows.
        directions: the stored shift, in place of a positive and a negative view.
        point: where rejected responses are led in place of a shift, in units of alpha (RMU).
    """

    def __init__(
        self,
        model: nn.Module,
        views: Views,
        layers: tuple[int, ...],
        options: MethodOptions,
        directions: Directions | None = None,
        teachers: Mapping[str, nn.Module] | None = None,
        packed: bool = False,
        point: Float[Tensor, "layers d_model"] | None = None,
    ):
        self.model = model
        self.views = views
        self.layers = layers
        self.options = options
        self.directions = directions.select(layers) if directions is not None else None
        self.teachers = teachers or {}
        self.packed = packed
        self.point = point

    def towards(self, directions: Directions) -> "Alignment":
        """The same alignment with a stored shift in place of the views' own."""
        views = views_asked(self.options, stored=True)
        return Alignment(
            self.model, views, self.layers, self.options, directions, self.teachers, self.packed
        )

    def __call__(
        self, model: nn.Module, batch: Batch, elapsed: float = 1.0, frozen: Frozen | None = None
    ) -> AlignmentOutput:
        """Loss of each response of `batch`. `model` is the policy as training calls it, wrapped.

        Args:
            elapsed: share of the training's steps that is done, 0 to 1, for weights over time.
            frozen: what the frozen views say where that is known; they are asked where it is None.
        """
        rows, options = batch["reference"], self.options
        scored = scored_tokens(batch, options)
        frozen = frozen or self.frozen(batch)
        asked = self.asked(batch, frozen)
        hidden, logits = self._look(model, self.model, rows, scored)
        terms, weights = self._distances(hidden, asked, batch, elapsed)
        if options.similarity_weight:
            terms["similarity"] = self._similarity(hidden, batch)
        for name, term in prediction_terms(logits, frozen.logits, scored, batch, options).items():
            terms[name] = self._of_rows(term.values, term.rows, batch)
        weights |= {
            "similarity": options.similarity_weight,
            "kl": options.kl_weight,
            "sft": options.sft_weight,
            "dpo": options.dpo_weight,
        }
        loss = sum(weights[name] * term for name, term in terms.items())
        detached = {name: term.detach() for name, term in terms.items()}
        return AlignmentOutput(loss, detached, progress(hidden.detach(), asked))

    def _distances(
        self, hidden: Tensor, asked: Asked, batch: Batch, elapsed: float
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The terms that are distances, by name, and their weights."""
        owner, terms = batch["reference"]["aligned_owner"], terms_of(self.options)
        if row_count(batch["reference"]) == len(batch["row"]):
            terms = tuple(term for term in terms if term.rows != "retained")
        measured = {
            distance: row_loss(hidden, asked, owner, distance)
            for distance in dict.fromkeys(term.distance for term in terms)
        }
        values = {
            term.name: self._of_rows(measured[term.distance], term.rows, batch) for term in terms
        }
        return values, {term.name: term.weight_at(elapsed) for term in terms}

    def _of_rows(self, values: Tensor, rows: RowKind, batch: Batch) -> Tensor:
        """What some of all rows are worth, one value for each response.

        Responses of the other side count 0: divided by the share of this side, the mean is its own.
        """
        responses, source = len(batch["row"]), self.options.response_source
        if rows == "retained":
            return values[responses:]
        if rows == "responses":
            return values[:responses]
        chosen = rows == "chosen"
        share = (CHOSEN_SHARE if chosen else REJECTED_SHARE)[source]
        return torch.where(batch["chosen"] == chosen, values[:responses], 0.0) / share

    def _similarity(self, hidden: Tensor, batch: Batch) -> Tensor:
        """How unlike each other the rejected rows of the batch are where each begins to be aligned.

        The one term that rows of a batch have in common: it sees the pairs within a process.
        """
        owner, responses = batch["reference"]["aligned_owner"], len(batch["row"])
        begins = torch.searchsorted(owner, torch.arange(responses, device=owner.device))
        apart = dissimilarity(hidden[:, begins], ~batch["chosen"])
        return self._of_rows(apart, "rejected", batch)

    def frozen(self, batch: Batch) -> Frozen:
        """Ask the frozen views, the reference for its predictions too where a term reads them."""
        needed = scored_tokens(batch, self.options) if self.options.compares_predictions else None
        reference, logits = self._look_frozen(self.views.reference, batch, needed)
        if self.views.positive is None:
            return Frozen(reference, None, logits)
        known = {self.views.reference: reference[:, : batch["aligned_responses"]]}
        return Frozen(reference, self.shift(batch, known), logits)

    def retained(self, rows: Rows) -> Float[Tensor, "layers tokens d_model"]:
        """What the reference says of retained texts alone."""
        return self._look_frozen(self.views.reference, {"reference": rows}).hidden

    def asked(self, batch: Batch, frozen: Frozen) -> Asked:
        """Where the policy's states are to go, by what the frozen views say."""
        rows, owner = batch["reference"], batch["reference"]["aligned_owner"]
        count, reference = row_count(rows), frozen.reference
        shift = torch.zeros_like(reference)
        shift[:, : batch["aligned_responses"]] = self._asked_shift(batch, frozen)
        scale = layer_scale(self.options.layer_scale, reference, shift, owner, count)
        if count > len(batch["row"]):
            # A retained text has no shift: it is measured in the unit of the response beside it.
            scale[:, len(batch["row"]) :] = scale[:, : len(batch["row"])]
        return Asked(reference, shift, scale)

    def _asked_shift(self, batch: Batch, frozen: Frozen) -> Tensor | float:
        """From the reference to the target, at the aligned response tokens."""
        alpha, aligned = self.options.alpha, batch["aligned_responses"]
        reference = frozen.reference[:, :aligned]
        if self.point is not None:
            owner = batch["reference"]["aligned_owner"][:aligned]
            target = alpha * self.point.to(reference).unsqueeze(1)
            rejected = ~batch["chosen"][owner].unsqueeze(-1)
            return torch.where(rejected, target - reference, 0.0)
        if self.directions is not None:
            self.directions = self.directions.to(reference.device)
            return alpha * self.directions.unsqueeze(1)
        # Without a shift every target is the reference itself.
        return 0.0 if frozen.shift is None else alpha * frozen.shift

    def shift(
        self, batch: Batch, known: Mapping[View, Tensor] | None = None
    ) -> Float[Tensor, "layers tokens d_model"]:
        """Positive minus negative at the aligned response tokens, not multiplied by alpha.

        Args:
            known: hidden states of views that need not be asked: in published DUAL the positive
                view is the reference.
        """
        hidden, responses = dict(known or {}), without_retained(batch)
        for view in (self.views.positive, self.views.negative):
            if view not in hidden:
                hidden[view] = self._look_frozen(view, responses).hidden
        return hidden[self.views.positive] - hidden[self.views.negative]

    def _look_frozen(self, view: View, batch: Batch, scored: Tensor | None = None) -> Seen:
        rows = batch[view.rows]
        if view.teacher in self.teachers:
            teacher = self.teachers[view.teacher]
            with torch.no_grad():
                return self._look(teacher, teacher, rows, scored)
        with frozen_pass(self.model, view.teacher):
            return self._look(self.model, self.model, rows, scored)

    def _look(
        self, model: nn.Module, unwrapped: nn.Module, rows: Batch, scored: Tensor | None
    ) -> Seen:
        """Hidden states at the aligned tokens; if asked, logits that predict `scored` tokens."""
        # Where no term needs the LM head it is asked for no column at all.
        none = torch.empty(0, dtype=torch.long, device=rows["input_ids"].device)
        columns = none if scored is None else forward_columns(scored)
        # Rows behind the last scored one, as retained texts are, end at the top target layer.
        how_far = {"stop": scored is None, "tokens_above": packed_tokens_until(rows, columns)}
        with record(unwrapped, self.layers, rows["aligned"], **how_far) as recording:
            output = model(**model_inputs(rows), use_cache=False, logits_to_keep=columns)
        if scored is None:
            return Seen(recording.stack(), None)
        return Seen(recording.stack(), response_logits(output.logits, scored, columns))


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
        teachers: adapter folders or full models by name; those that no view needs are left out.
        directions: a stored shift.
        seed: what RMU's random vectors follow from.

    Raises:
        ValueError: directions for a method that leads rejected responses away.
    """
    if directions is not None and options.facts.pushes_away:
        raise ValueError(
            f"method {options.method!r} reads no directions: leave them away, or set "
            "method='direction'."
        )
    views = views_asked(options, stored=directions is not None)
    layers = resolve_layers(options.target_layers, depth_of(base))
    depth = layers[-1] + 1
    policy = attach_policy(base, peft_config, range(depth), teachers.get(options.reference))
    d_model = base.config.get_text_config().hidden_size
    if directions is not None:
        directions.check_width(d_model)
    point = random_units(layers, d_model, seed) if options.method == "rmu" else None
    needed = {name: teachers[name] for name in views.teachers()}
    full = add_teachers(policy, needed, depth)
    models = (policy.get_base_model(), *full.values())
    packed = options.packing and all(map(use_packed_attention, models))
    return Alignment(policy, views, layers, options, directions, full, packed, point)


def mean_shift(
    alignment: Alignment, batches: Iterable[tuple[Batch, bool]], device: torch.device
) -> Directions:
    """The mean of the views' shift over all responses of `batches`, the same on every rank.

    Args:
        batches: each with whether it counts; one that does not is run and left out.
    """
    fitter = MeanFitter(alignment.layers)
    for batch, counts in batches:
        batch = send_to_device(batch, device)
        aligned = batch["reference"]["aligned_owner"][: batch["aligned_responses"]]
        fitter.update(alignment.shift(batch), aligned, len(batch["row"]), counts=counts)
    fitter.reduce()
    return fitter.fit(positions=alignment.options.positions, method=alignment.options.method)


def without_retained(batch: Batch) -> Batch:
    """The batch without the retained texts, which follow the responses in `reference`."""
    rows, aligned = batch["reference"], batch["aligned_responses"]
    cut = {name: rows[name][:aligned] for name in ("aligned", "aligned_owner")}
    return batch | {"reference": first_rows(rows, len(batch["row"])) | cut}
