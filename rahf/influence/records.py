"""Influence as records: for each query its top pairs, with every rival's rank, and a summary.

Knows scores, baselines and a tokenizer; draws nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rahf.evaluation.intervals import mean_estimate
from rahf.influence.baselines import Baselines
from rahf.influence.concentration import spurious_hits, tail_of, top_share
from rahf.influence.objectives import SIDES
from rahf.influence.run import POLICY_STAGE, Influence
from rahf.influence.scores import Detail
from rahf.interpret.token_shift.records import text_pieces


def rankings(influence: Influence, rivals: Baselines | None) -> dict[str, Tensor]:
    """Return every ranking of the pairs, [pairs, queries]; the larger, the more it supports."""
    policy = influence.stages[POLICY_STAGE]
    found = {"influence": -influence.total}
    place_of = {row: place for place, row in enumerate(influence.rows)}
    here, queries = torch.tensor([place_of[row] for row in policy.rows]), influence.total.shape[1]

    def spread(values: Tensor) -> Tensor:
        columns = values if values.dim() > 1 else values.unsqueeze(1).expand(-1, queries)
        if policy.rows == influence.rows:
            return columns
        return torch.full((len(influence.rows), queries), torch.nan).index_copy(0, here, columns)

    found["gradient dot"] = spread(-policy.scores.products)
    if rivals is not None:
        found["BM25"] = spread(rivals.bm25)
        found["similarity"] = spread(rivals.similarity)
        found["margin"] = spread(rivals.margin)
        found["IRM"] = spread(rivals.irm)
        if rivals.loss_diff is not None:
            found["LossDiff"] = spread(rivals.loss_diff)
    return found


def query_records(
    influence: Influence,
    names: Sequence[str],
    values: Sequence[float],
    top: Tensor,
    rankings_found: Mapping[str, Tensor],
) -> list[dict[str, Any]]:
    """Return a record of each query: its value, how concentrated its influence is, its pairs."""
    own = self_influence_of(influence)
    flags = spurious_hits(top, own)
    stages = {name: influence.of_stage(name) for name in influence.stages}
    records = []
    for query, name in enumerate(names):
        ranks = {
            rival: ranks_of(each[:, query], top[query]) for rival, each in rankings_found.items()
        }
        pairs = [
            {
                "row": influence.rows[place],
                "change": float(influence.total[place, query]),
                "through": {stage: float(each[place, query]) for stage, each in stages.items()},
                "self_influence": float(own[place]),
                "spurious": bool(flag),
                "ranks": {rival: each[number] for rival, each in ranks.items()},
            }
            for number, (place, flag) in enumerate(
                zip(top[query].tolist(), flags[query].tolist(), strict=True)
            )
        ]
        record = {"query": name, "value": float(values[query]), "pairs": pairs}
        records.append(record | _concentration(influence.total[:, query].numpy()))
    return records


def self_influence_of(influence: Influence) -> Tensor:
    """Return the largest self-influence of each pair over the stages."""
    place_of = {row: place for place, row in enumerate(influence.rows)}
    found = torch.zeros(len(influence.rows))
    for stage in influence.stages.values():
        here = [place_of[row] for row in stage.rows]
        found[here] = torch.maximum(found[here], stage.scores.self_influence)
    return found


def ranks_of(values: Float[Tensor, " pairs"], places: Int[Tensor, " kept"]) -> list[int]:
    """Return the ranks of some pairs, 1 for the largest value.

    Equal values share a rank; pairs that the ranking lacks come after all others.
    """
    filled = values.nan_to_num(nan=-torch.inf)
    larger = len(filled) - torch.searchsorted(filled.sort().values, filled[places], right=True)
    return (larger + 1).tolist()


def _concentration(changes: np.ndarray) -> dict[str, Any]:
    tail = tail_of(changes)
    return {
        "largest": float(np.abs(changes).max()),
        "top_1_percent_share": top_share(changes),
        "tail": None if tail is None else tail._asdict(),
        "curve": _curve(np.sort(np.abs(changes))[::-1]),
    }


def _curve(sizes: np.ndarray) -> list[tuple[int, float]]:
    """Return (rank, size) at up to 60 ranks, evenly in their logarithm."""
    ranks = np.unique(np.geomspace(1, len(sizes), 60).astype(int))
    return [(int(rank), float(sizes[rank - 1])) for rank in ranks]


def agreement(rankings_found: Mapping[str, Tensor]) -> dict[str, dict[str, float] | None]:
    """Return Spearman's correlation of each rival with influence: the mean over the queries with
    its 95 % interval; None where a ranking is constant.
    """
    own, found = rankings_found["influence"], {}
    for name, other in rankings_found.items():
        if name == "influence":
            continue
        each = [spearman(own[:, query], other[:, query]) for query in range(own.shape[1])]
        known = [value for value in each if value is not None]
        estimate = mean_estimate(known) if known else None
        found[name] = estimate and estimate.as_dict()
    return found


def spearman(first: Tensor, second: Tensor) -> float | None:
    """Return the rank correlation where both are known; None where one of them is constant."""
    there = second.isfinite()
    ranks = torch.stack([each[there].argsort().argsort().double() for each in (first, second)])
    if there.sum() < 3 or not (first[there].std() > 0 and second[there].std() > 0):
        return None
    return float(torch.corrcoef(ranks)[0, 1])


def detail_record(detail: Detail, stage: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return a pair's change through a stage by side, layer and token, with the text of tokens."""
    rows = []
    for row in range(len(detail.tokens)):
        real = detail.mask[row]
        rows.append(
            {
                "side": SIDES[int(detail.side[row])],
                "pieces": text_pieces(tokenizer, detail.tokens[row][real].tolist()),
                "update": detail.update[row][real].tolist(),
                "output": detail.output[row][real].tolist(),
            }
        )
    sides = dict(zip(SIDES, detail.cells.sum(1).tolist(), strict=True))
    return {"stage": stage, "sides": sides, "layers": detail.cells.sum(0).tolist(), "rows": rows}


def layer_histogram(influence: Influence) -> dict[str, dict[str, float]]:
    """Return each layer's share of |change| over all pairs and queries, by stage."""
    found = {}
    for name, stage in influence.stages.items():
        sums = stage.scores.by_layer.sum(0)
        shares = (sums / sums.sum().clamp(min=1e-30)).tolist()
        found[name] = {
            str(layer): share for layer, share in zip(stage.scores.layers, shares, strict=True)
        }
    return found
