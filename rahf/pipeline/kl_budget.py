"""A trained policy against the KL budget that the stage `choice` solved its alpha for."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState
from peft import PeftModel

from rahf.artifacts import CHOICE_FILE, read_object
from rahf.directions.calibration import NeutralText, strength_within
from rahf.models.adapters import POLICY, frozen_pass, scaled


class Kept(NamedTuple):
    """A policy beside the budget that its alpha was solved for."""

    strength: float  # factor on its update that keeps it within the budget; 1 where it is
    divergence: float  # from the base on the choice's neutral text at that strength, nats per token
    budget: float


def kept_to_choice(policy: PeftModel, pad_token_id: int, folder: Path) -> Kept | None:
    """Compare a trained policy with the budget of the choice in `folder`, and print the result.

    None where no alpha was solved for, or where the policy did not start as the base.
    """
    path = folder / CHOICE_FILE
    choice = read_object(path) if path.exists() else {}
    if not choice.get("solved") or choice["reference"] != "base":
        return None
    kept = kept_to_budget(policy, choice["neutral"], choice["budget"], pad_token_id)
    found = f"KL on neutral text: {kept.divergence:.3g} nats per token, budget {kept.budget:g}"
    if kept.strength < 1:
        found += f"; the adapter is scaled by {kept.strength:.3f} to keep to it"
    PartialState().print(found)
    return kept


def kept_to_budget(
    policy: PeftModel, neutral: Sequence[list[int]], budget: float, pad_token_id: int
) -> Kept:
    """Return the strength at which a policy keeps to the budget on the texts `neutral` (ids)."""
    with frozen_pass(policy, None):
        text = NeutralText(policy, neutral, pad_token_id)

    def divergence(strength: float) -> float:
        with frozen_pass(policy, POLICY), scaled(policy, POLICY, strength):
            return text.divergence()

    return Kept(*strength_within(divergence, budget), budget)
