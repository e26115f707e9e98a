"""Features changed while a model runs: pinned to a value, scaled by a factor, or ablated.

Only the difference along the feature's direction is added, so that what the dictionary does not
explain stays as it is. Outside of the context the model is as it was, to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rahf.directions.calibration import NeutralText, solve_strength
from rahf.directions.steering import Columns, Start, check_size, removed_afterwards, steered
from rahf.interpret.features.bases import check_base
from rahf.interpret.features.dictionary import Dictionary
from rahf.interpret.features.firing import chosen_activations
from rahf.interpret.features.streams import mlp_of
from rahf.models.capture import find_blocks
from rahf.models.kv_cache import cache_name

How = Literal["pin", "scale", "ablate"]

FIRST_SHARE = 0.1
"""Norm that a pinned feature adds, as a share of the states' norm, where the search begins."""

REACHED = 0.25
"""Share of the budget that a solved strength may miss it by; beyond, there is no such strength."""


class NoStrengthError(ValueError):
    """No strength of a feature moves the predictions by as much as is asked for."""


@dataclass(frozen=True)
class Intervention:
    """What is done to one feature.

    Raises:
        ValueError: a strength that is not finite.
    """

    latent: int
    how: How
    strength: float = 0.0  # value that it is pinned to, or factor; ablation has none

    def __post_init__(self):
        if not torch.tensor(self.strength).isfinite():
            raise ValueError(f"strength {self.strength} is not finite: give a number.")

    def change(self, activation: Tensor) -> Tensor:
        """Return what is added to the activation."""
        if self.how == "pin":
            return self.strength - activation
        factor = self.strength if self.how == "scale" else 0.0
        return (factor - 1) * activation


@dataclass(frozen=True)
class Changed:
    """What several interventions add to hidden states."""

    dictionary: Dictionary
    interventions: Sequence[Intervention]

    def __call__(self, hidden: Float[Tensor, "batch seq d_model"]) -> Tensor:
        latents = torch.tensor([each.latent for each in self.interventions])
        codes = self.dictionary.encode(hidden.flatten(0, 1).float())
        activations = chosen_activations(codes, latents)
        changes = [
            each.change(activations[:, place]) for place, each in enumerate(self.interventions)
        ]
        added = torch.stack(changes, 1) @ self.dictionary.directions[latents.to(hidden.device)]
        return added.view_as(hidden).to(hidden.dtype)


@contextmanager
def intervene(
    model: nn.Module,
    dictionary: Dictionary,
    interventions: Sequence[Intervention],
    *,
    start: Start = None,
) -> Iterator[None]:
    """Change features in every forward of `model` made inside the context, `generate` included.

    Args:
        start: first column that is changed; see `directions.steering.steer`.

    Raises:
        ValueError: a dictionary of another model or of differences; a latent that it does not
            have, or that is given twice; a strength that the dtype of the model cannot hold.
    """
    check_interventions(dictionary, interventions)
    check_base(dictionary, model)
    for each in interventions:
        norm = abs(each.strength) * dictionary.directions[each.latent].double().norm().item()
        check_size(norm, model.dtype, f"feature {each.latent}, {each.how} {each.strength:g}: it")
    blocks = find_blocks(model)
    if start is not None:
        cache_name(blocks.owner)  # refused before the first token, where it cannot be read
    columns = Columns(start)
    with ExitStack() as hooks:
        note = blocks.owner.register_forward_pre_hook(columns.note, with_kwargs=True)
        hooks.enter_context(removed_afterwards(note))
        site = module_at(model, dictionary)
        hook = site.register_forward_hook(steered(Changed(dictionary, interventions), columns))
        hooks.enter_context(removed_afterwards(hook))
        yield


def module_at(model: nn.Module, dictionary: Dictionary) -> nn.Module:
    """Return the module whose output the dictionary reads."""
    block = find_blocks(model).modules[dictionary.origin.layer]
    return block if dictionary.origin.site == "residual" else mlp_of(block)


def check_interventions(dictionary: Dictionary, interventions: Sequence[Intervention]) -> None:
    """Refuse interventions that the dictionary does not allow, before anything runs."""
    latents = [each.latent for each in interventions]
    wrong = [latent for latent in latents if not 0 <= latent < dictionary.latents]
    if wrong:
        raise ValueError(
            f"the dictionary has features 0 to {dictionary.latents - 1}, not {wrong[0]}."
        )
    if len(set(latents)) < len(latents):
        raise ValueError(f"features {latents}: give each of them once.")
    if dictionary.origin.kind == "differences":
        raise ValueError(
            "the dictionary is of differences between two models, so a single model has no "
            "activations of its features; give a dictionary of states."
        )


def strength_at(
    model: nn.Module,
    dictionary: Dictionary,
    latent: int,
    how: How,
    kl: float,
    texts: Sequence[list[int]],
    pad_token_id: int,
) -> float:
    """Return the strength at which the predictions on neutral text move by `kl`, nats per token.

    Args:
        texts: ids of neutral texts.

    Raises:
        ValueError: ablation, which has no strength.
        NoStrengthError: no strength moves the predictions by as much.
    """
    if how == "ablate":
        raise ValueError("ablation has no strength to solve for: omit the KL, or pin or scale.")
    text = NeutralText(model, texts, pad_token_id)
    none = 1.0 if how == "scale" else 0.0

    def divergence(strength: float) -> float:
        with intervene(model, dictionary, [Intervention(latent, how, none + strength)]):
            return text.divergence()

    first = 1.0 if how == "scale" else _first_pin(model, dictionary, latent, text)
    solved, found = solve_strength(divergence, kl, first)
    if abs(found - kl) > REACHED * kl:
        raise NoStrengthError(
            f"feature {latent}: no strength was found at which {how} moves the predictions on the "
            f"neutral text by {kl:g} nats per token; the last one, {none + solved:.4g}, gave "
            f"{found:.4g}. Give neutral text in which it is active, another KL, or a strength."
        )
    return none + solved


def _first_pin(model: nn.Module, dictionary: Dictionary, latent: int, text: NeutralText) -> float:
    """Return the activation that adds a small share of the states' norm."""
    sizes: list[float] = []

    def measure(hidden: Tensor) -> Tensor:
        sizes.append(hidden.float().norm(dim=-1).mean().item())
        return torch.zeros_like(hidden)

    hook: Callable = steered(measure, Columns(None))
    with removed_afterwards(module_at(model, dictionary).register_forward_hook(hook)):
        text.divergence()
    return FIRST_SHARE * sizes[0] / dictionary.directions[latent].norm().clamp(min=1e-9).item()
