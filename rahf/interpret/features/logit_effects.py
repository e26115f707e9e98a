"""What a direction does to the predictions by itself: through the final norm and the unembedding.

The model's own modules above the last block compute it, whatever they are. Knows models and
directions; knows no dictionary and no text.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rahf.models.adapters import frozen_pass
from rahf.models.capture import AroundBlock, find_blocks, replaced_blocks

DIRECTIONS_AT_ONCE = 64


class LogitEffects(NamedTuple):
    """Tokens whose logits a direction raises and lowers most, from the strongest."""

    raised: Int[Tensor, "directions tokens"]
    raised_by: Float[Tensor, "directions tokens"]  # above the mean over the vocabulary
    lowered: Int[Tensor, "directions tokens"]
    lowered_by: Float[Tensor, "directions tokens"]


class Replaced(AroundBlock):
    """Returns given states in place of those of the block inside."""

    def __init__(self, block: nn.Module, states: Tensor):
        super().__init__(block)
        self.states = states

    def forward(self, *args, **kwargs) -> Any:
        output = self.block(*args, **kwargs)
        hidden = output if isinstance(output, Tensor) else output[0]
        states = self.states.to(hidden)
        return states if isinstance(output, Tensor) else (states, *output[1:])


def logit_effects(
    model: nn.Module, directions: Float[Tensor, "directions d_model"], tokens: int = 10
) -> LogitEffects:
    """Return the strongest effects of each direction on the base's logits.

    Raises:
        ValueError: the directions are not as wide as the model's hidden states.
    """
    width = model.config.get_text_config().hidden_size
    if directions.shape[1] != width:
        raise ValueError(
            f"the directions have {directions.shape[1]} dimensions, the model's hidden states "
            f"{width}: they are of another model."
        )
    parts = []
    for part in directions.split(DIRECTIONS_AT_ONCE):
        logits = all_effects(model, part)
        raised, lowered = logits.topk(tokens), (-logits).topk(tokens)
        parts.append((raised.indices, raised.values, lowered.indices, -lowered.values))
    return LogitEffects(*(torch.cat(field).cpu() for field in zip(*parts, strict=True)))


@torch.no_grad()
def all_effects(
    model: nn.Module, directions: Float[Tensor, "directions d_model"]
) -> Float[Tensor, "directions vocab"]:
    """Return the effect on every logit, less the mean over the vocabulary.

    Half of the difference between the direction and its opposite: biases cancel out.
    """
    blocks, device = find_blocks(model), next(model.parameters()).device
    both = torch.cat([directions, -directions]).to(device)[:, None]
    ids = torch.zeros(len(both), 1, dtype=torch.long, device=device)
    places = torch.zeros_like(ids)
    with (
        _as_base(model),
        replaced_blocks(blocks, [Replaced(blocks.modules[-1], both)]),
    ):
        logits = model(input_ids=ids, position_ids=places, use_cache=False).logits[:, -1].float()
    up, down = logits.chunk(2)
    effects = (up - down) / 2
    return effects - effects.mean(1, keepdim=True)


def _as_base(model: nn.Module):
    return frozen_pass(model, None) if hasattr(model, "peft_config") else torch.no_grad()
