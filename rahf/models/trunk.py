"""How many blocks base, teachers and policy share: those below every adapter.

Their output is computed once a batch (`capture.Trunk`). That holds where a block reads nothing but
the output of the block before it, which is checked on each model. Knows models and adapters; knows
no loss and no data.
"""

import logging
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rahf.distributed.sharding import gathered
from rahf.models.capture import Trunk, find_blocks, record
from rahf.models.packing import evaluated, tolerance

logger = logging.getLogger(__name__)

CHECKED_TOKENS = 9


def shared_blocks(model: PeftModel, highest: int) -> int:
    """Return the number of lowest blocks without any adapter, at most `highest`.

    Where a block above them reads more than its input, as keys and values of lower blocks, a
    warning names the family once, and the number is 0: every pass runs all blocks.
    """
    blocks = find_blocks(model).modules
    adapted = (
        layer
        for layer, block in enumerate(blocks)
        if any(isinstance(part, BaseTunerLayer) for part in block.modules())
    )
    depth = min(highest, next(adapted, highest))
    wrong = what_a_trunk_breaks(model, depth) if depth else None
    if wrong is None:
        return depth
    logger.warning(
        "blocks below the adapters run in every pass for this model (%s): %s. Results are the "
        "same; a step takes longer.",
        model.config.get_text_config().model_type,
        wrong,
    )
    return 0


def what_a_trunk_breaks(model: nn.Module, depth: int) -> str | None:
    """Run a short row from its beginning and from its trunk; return what differs, or None."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 1 + CHECKED_TOKENS, device=model.device) * 7919 % vocabulary
    trunk, layers = Trunk(depth), (depth,)
    with gathered(model), evaluated(model):
        expected = _outputs(model, ids, layers, trunk)
        try:
            found = _outputs(model, ids, layers, trunk)
        except Exception as error:  # whatever it is, the same row has just run from its beginning
            return f"its forward fails without them ({type(error).__name__}: {error})"
    difference = max(
        ((now - before).norm(dim=-1) / before.norm(dim=-1)).mean().item()
        for now, before in zip(found, expected, strict=True)
    )
    if difference <= tolerance(model):
        return None
    return f"its states are others without them (relative difference {difference:.2g})"


def _outputs(model: nn.Module, ids: Tensor, layers: tuple[int, ...], trunk: Trunk) -> list[Tensor]:
    """Return the states of `layers` and the logits, in float32, of one line of tokens."""
    inputs: dict[str, Any] = {"input_ids": ids[None], "use_cache": False}
    positions = torch.arange(len(ids), device=ids.device)
    with record(model, layers, positions, stop=False, trunk=trunk) as recording:
        logits = model(**inputs).logits[0].float()
    return [*recording.stack(), logits]
