"""Whether a model finds the chosen response of a pair likelier than the rejected one.

By the sum of log-probabilities, which favours the shorter side; per token; per byte, which
tokenizers cannot sway; and by DPO's implicit reward, the change against a reference (Rafailov et
al. 2023, eq. 5, without beta). Knows models and tokenised pairs; knows no file.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rahf.data.rows import Pairs
from rahf.evaluation.intervals import check_finite, mean_estimate, share_estimate
from rahf.models.likelihood import PairLikelihoods, preferred


class PairSizes(NamedTuple):
    """Bytes of both responses of pairs, at least 1."""

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]


def pair_sizes(pairs: Pairs, tokenizer: PreTrainedTokenizerBase) -> PairSizes:
    """Return the UTF-8 bytes of the responses as text, without the end of the turn."""

    def sizes(side: str) -> Tensor:
        texts = [tokenizer.decode(pair[f"{side}_ids"], skip_special_tokens=True) for pair in pairs]
        return torch.tensor([float(max(1, len(text.encode()))) for text in texts])

    return PairSizes(sizes("chosen"), sizes("rejected"))


def preference_figures(
    model: PairLikelihoods, sizes: PairSizes, reference: PairLikelihoods | None = None
) -> dict[str, Any]:
    """Return accuracy and mean margin (nats) under each measure, with intervals over pairs.

    `longer_is_chosen` is reported beside them: what a judge would reach that looks at length only.

    Raises:
        ValueError: a log-probability is not finite.
    """
    for name, likelihoods in (("model", model), ("reference", reference)):
        for side in ("chosen", "rejected") if likelihoods is not None else ():
            given = getattr(likelihoods, side).tolist()
            check_finite(given, f"the {name}'s log-probability of the {side} response of pair")
    margins = {
        "sum": model.chosen - model.rejected,
        "per_token": model.token_margins(),
        "per_byte": model.chosen / sizes.chosen - model.rejected / sizes.rejected,
    }
    if reference is not None:
        margins["implicit_reward"] = margins["sum"] - (reference.chosen - reference.rejected)
    longer = sizes.chosen - sizes.rejected
    return {
        "pairs": len(longer),
        "longer_is_chosen": _accuracy(longer),
        **{
            name: {
                "accuracy": _accuracy(margin),
                "margin": mean_estimate(margin.tolist()).as_dict(),
            }
            for name, margin in margins.items()
        },
    }


def _accuracy(margins: Tensor) -> dict[str, float]:
    """Return the share of positive margins; one of zero counts half."""
    return share_estimate(preferred(margins).tolist()).as_dict()
