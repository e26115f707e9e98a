"""Outputs of each view on a batch: hidden states at aligned tokens, logits of scored tokens.

The table of methods names the views. Knows models and batches; knows no target and no loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from rahf.data.contrast import Batch, without_retained
from rahf.data.rows import Rows
from rahf.models.adapters import frozen_pass
from rahf.models.capture import Trunk, record
from rahf.models.likelihood import model_inputs, response_logits
from rahf.recipe.methods import METHODS, View, Views


class Outputs(NamedTuple):
    """Outputs of one forward pass on a block of rows."""

    hidden: Float[Tensor, "layers tokens d_model"]  # at the aligned tokens
    logits: Float[Tensor, "scored vocab"] | None  # that predict the scored tokens, if requested


class Frozen(NamedTuple):
    """Outputs of the frozen views on a batch: the same for every alpha and in every epoch."""

    reference: Float[Tensor, "layers tokens d_model"]  # responses, then retained texts
    shift: Float[Tensor, "layers response_tokens d_model"] | None  # positive minus negative view
    logits: Float[Tensor, "scored vocab"] | None = None  # of the reference, where a term reads them


def views_of(method: str, reference: str, *, stored_shift: bool) -> Views:
    """Return the views that a training reads; beside a stored shift, only the reference."""
    views = METHODS[method].views(reference)
    return views.without_shift() if stored_shift else views


@dataclass(frozen=True)
class FrozenViews:
    """The frozen views, on a model whose adapters are the policy and its teachers."""

    model: PeftModel  # unwrapped; the policy is active
    views: Views
    layers: tuple[int, ...]  # target layers, ascending
    teachers: Mapping[str, nn.Module]  # full models in place of adapters, by name

    def read(self, batch: Batch, *, predictions: bool, trunk: Trunk | None = None) -> Frozen:
        """Run every view on `batch`.

        Args:
            predictions: whether the logits of the reference are read.
            trunk: shared by all passes on the reference's rows.
        """
        reference, logits = self.read_view(
            self.views.reference, batch, predictions=predictions, trunk=trunk
        )
        if self.views.positive is None:
            return Frozen(reference, None, logits)
        known = {self.views.reference: reference[:, : batch["aligned_responses"]]}
        return Frozen(reference, self.shift(batch, known, trunk), logits)

    def retained(self, rows: Rows) -> Float[Tensor, "layers tokens d_model"]:
        """Return the states of the reference on a block of retained texts."""
        return self.read_view(self.views.reference, {"reference": rows}).hidden

    def shift(
        self,
        batch: Batch,
        known: Mapping[View, Tensor] | None = None,
        trunk: Trunk | None = None,
    ) -> Float[Tensor, "layers tokens d_model"]:
        """Return positive minus negative at the aligned response tokens, not multiplied by alpha.

        Args:
            known: hidden states of views that need no pass: in published DUAL the positive view is
                the reference.
        """
        hidden, responses = dict(known or {}), without_retained(batch)
        positive, negative = self.views.positive, self.views.negative
        assert positive is not None  # a method without a shift computes none
        assert negative is not None
        for view in (positive, negative):
            if view not in hidden:
                hidden[view] = self.read_view(view, responses, trunk=trunk).hidden
        return hidden[positive] - hidden[negative]

    def read_view(
        self, view: View, batch: Batch, *, predictions: bool = False, trunk: Trunk | None = None
    ) -> Outputs:
        """Run one view on its block of rows."""
        rows = batch[view.rows]
        if view.teacher is not None and view.teacher in self.teachers:
            teacher = self.teachers[view.teacher]
            with torch.no_grad():
                return run_rows(teacher, teacher, self.layers, rows, predictions=predictions)
        shared = trunk if view.rows == "reference" else None
        with frozen_pass(self.model, view.teacher):
            return run_rows(
                self.model, self.model, self.layers, rows, predictions=predictions, trunk=shared
            )


def run_rows(
    model: nn.Module,
    unwrapped: nn.Module,
    layers: tuple[int, ...],
    rows: Rows,
    *,
    predictions: bool,
    trunk: Trunk | None = None,
) -> Outputs:
    """Run `model`, which may wrap `unwrapped`, on a block of rows, in one forward."""
    if predictions:
        columns = rows["columns"]
    else:  # the LM head gets no column, and no block above the top target layer runs
        columns = torch.empty(0, dtype=torch.long, device=rows["input_ids"].device)
    # Rows behind the last scored one, as retained texts are, end at the top target layer.
    stop, above = not predictions, rows.get("tokens_above")
    with record(
        unwrapped, layers, rows["aligned"], stop=stop, tokens_above=above, trunk=trunk
    ) as recording:
        output = model(**model_inputs(rows), use_cache=False, logits_to_keep=columns)
    if not predictions:
        return Outputs(recording.stack(), None)
    return Outputs(recording.stack(), response_logits(output.logits, rows["scored"], columns))
