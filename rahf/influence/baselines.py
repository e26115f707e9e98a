"""Rivals of influence, cheap rankings of the same pairs that are shown beside it.

BM25 over token ids, cosine of mean hidden states, the pair's own margin under the trained model,
and two scores of Zhang et al. (2025, arXiv 2510.13212), with d = (x, y_w, y_l), the loss l of the
training, and a model val that was trained on validation pairs:

    IRM(d)       beta (log pi(y_w|x) / base(y_w|x)  -  log pi(y_l|x) / base(y_l|x)), here over beta
    LossDiff(d)  l(pi; d) - l(val; d)

The dot product of gradients comes with the scores. Knows models and tokenised pairs.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import normalize

from rahf.data.rows import sequence_rows
from rahf.influence.objectives import Objective, in_batches, real_tokens
from rahf.influence.queries import Query
from rahf.influence.seen import Seen
from rahf.models.adapter_files import put_adapter
from rahf.models.adapters import base_name, check_same_base, depth_of, frozen_pass
from rahf.models.capture import record
from rahf.models.likelihood import pair_likelihoods, state_inputs
from rahf.report.progress import timed

VALIDATED = "validated"
"""Name of the adapter that was trained on validation pairs, on the model."""

K1, B = 1.2, 0.75
"""BM25's constants (Robertson and Zaragoza 2009)."""

DOCUMENTS = 1024
"""Documents that BM25 counts at once."""


class Baselines(NamedTuple):
    """Rankings of the pairs that need no curvature."""

    bm25: Float[Tensor, "pairs queries"]
    similarity: Float[Tensor, "pairs queries"]  # cosine of mean hidden states, last block
    margin: Float[Tensor, " pairs"]  # chosen minus rejected under the trained model, nats
    irm: Float[Tensor, " pairs"]  # that minus the same under the base: implicit reward / beta
    # Loss minus that of a model trained on validation pairs, where one is given.
    loss_diff: Float[Tensor, " pairs"] | None = None


def bm25(documents: Sequence[list[int]], queries: Sequence[list[int]]) -> Tensor:
    """Return Okapi BM25 of each document and query, [documents, queries]; terms are token ids."""
    counts = [Counter(document) for document in documents]
    average = sum(map(len, documents)) / max(1, len(documents))
    holding = Counter(term for count in counts for term in count)
    terms = {term: column for column, term in enumerate({t for query in queries for t in query})}
    held = torch.tensor([float(holding[term]) for term in terms])
    rarity = torch.log1p((len(documents) - held + 0.5) / (held + 0.5))
    asked = torch.zeros(len(terms), len(queries))
    for column, query in enumerate(queries):
        asked[[terms[term] for term in set(query)], column] = 1
    found = torch.zeros(len(documents), len(queries))
    for places in in_batches(len(documents), DOCUMENTS):
        here = torch.zeros(len(places), len(terms))
        for row, place in enumerate(places):
            for term in counts[place].keys() & terms.keys():
                here[row, terms[term]] = counts[place][term]
        lengths = torch.tensor([float(len(documents[place])) for place in places]).unsqueeze(1)
        level = K1 * (1 - B + B * lengths / average)
        found[places.start : places.stop] = (rarity * here * (K1 + 1) / (here + level)) @ asked
    return found


def baselines(
    model: PeftModel,
    rows: Dataset,
    queries: Sequence[Query],
    pad: int,
    batch_size: int,
    seen: Seen | None = None,
) -> Baselines:
    """Return the rankings of the pairs for the queries.

    Args:
        seen: what a pass over the pairs has found already; None: passes are made for it.
    """
    pairs = [rows[place] for place in range(len(rows))]
    texts = [pair["prompt_ids"] + pair["chosen_ids"] + pair["rejected_ids"] for pair in pairs]
    asked = [query.rows[0].prompt + query.rows[0].response for query in queries]
    seen = seen or see(model, rows, pad, batch_size)
    of_queries = mean_states(model, asked, pad, batch_size)
    similarity = normalize(seen.states, dim=1) @ normalize(of_queries, dim=1).T
    return Baselines(bm25(texts, asked), similarity, seen.own, seen.own - seen.base)


def see(model: PeftModel, rows: Dataset, pad: int, batch_size: int) -> Seen:
    """Return what the rivals read of the pairs, in passes of their own."""
    own = pair_likelihoods(model, rows, pad, batch_size)
    with frozen_pass(model, None):
        base = pair_likelihoods(model, rows, pad, batch_size)
    texts = [row["prompt_ids"] + row["chosen_ids"] for row in rows]
    states = mean_states(model, texts, pad, batch_size)
    return Seen(own.chosen - own.rejected, base.chosen - base.rejected, states)


@torch.no_grad()
def mean_states(
    model: PeftModel, texts: Sequence[list[int]], pad: int, batch_size: int
) -> Float[Tensor, "texts d_model"]:
    """Return the mean of the last block's hidden states over each text."""
    device, found, last = next(model.parameters()).device, [], depth_of(model) - 1
    for places in timed(in_batches(len(texts), batch_size), "texts"):
        some = [texts[place] for place in places]
        rows = send_to_device(sequence_rows([[] for _ in some], some, pad), device)
        real = real_tokens(rows)
        with record(model, (last,), real.flatten().nonzero().squeeze(1), stop=True) as recording:
            model(**state_inputs(rows))
        owner, states = rows["owner"][real], recording.stack()[0]
        sums = states.new_zeros(len(some), states.shape[1]).index_add(0, owner, states)
        found.append((sums / real.sum(1, keepdim=True)).cpu())
    return torch.cat(found)


def loss_difference(
    objective: Objective, own: Float[Tensor, " pairs"], validated_by: Path, batch_size: int
) -> Float[Tensor, " pairs"]:
    """Return LossDiff: the loss of each pair minus that under an adapter that was trained on
    validation pairs, by the same loss.

    Args:
        own: the losses under the trained adapter.
    """
    check_same_base(validated_by, base_name(objective.model))
    put_adapter(objective.model, validated_by, VALIDATED)
    return own - pair_losses(objective, VALIDATED, batch_size)


def pair_losses(objective: Objective, adapter: str, batch_size: int) -> Float[Tensor, " pairs"]:
    """Return the loss of each pair under one of the model's adapters."""
    found = torch.zeros(len(objective.rows))
    with frozen_pass(objective.model, adapter), objective.quick():
        for places in timed(objective.by_length(range(len(found)), batch_size), "losses"):
            batch = objective.quick_batch(places, whole=False)
            found[places] = objective.losses(batch).float().cpu()
    return found
