import numpy as np
import pytest
import torch
from tiny_models import D_MODEL, EOS, tiny_pairs
from toy_influence import KINDS, loop_gradients, objective_of, policy

from rahf.influence.baselines import baselines, bm25, pair_losses, see
from rahf.influence.concentration import spurious_hits, tail_of, top_share
from rahf.influence.curvature import fit_curvature
from rahf.influence.formula import change_if_left_out
from rahf.influence.gradients import exact_attention, lora_parts, weights_of_parts
from rahf.influence.queries import (
    Direction,
    ask,
    ask_functions,
    log_probability,
    margin,
    projections,
)
from rahf.influence.records import ranks_of
from rahf.influence.scores import detail_of, score_pairs
from rahf.influence.strongest import Strongest, strongest
from rahf.models.capture import record
from rahf.models.likelihood import likelihood, model_inputs, rows_for


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_sides_layers_and_tokens_add_up_to_the_dot_product(family, tmp_path, kind):
    objective = objective_of(family, kind, tmp_path)
    parts = lora_parts(objective.model)
    queries = draw(2, parts[-1].stop)
    same = fit_curvature("identity", objective, parts, tmp_path, 4)
    scores = score_pairs(objective, parts, queries, queries, same.solve_pairs, 4)
    gradients = loop_gradients(objective)
    expected = change_if_left_out(queries, gradients, 6)
    size = expected.abs().max()
    assert (scores.changes - expected).abs().max() < 1e-4 * size
    assert torch.allclose(scores.self_influence, gradients.square().sum(1) / 6, rtol=1e-3)
    detail = detail_of(objective, parts, queries[1], 3)
    for map_ in (detail.cells, detail.update, detail.output):
        assert abs(map_.sum() - expected[3, 1]) < 1e-4 * size
    assert not detail.update[~detail.mask].any()
    assert not detail.output[~detail.mask].any()
    # What the loss reads is in the responses; what moves the weights is in the prompt, too.
    prompt = len(objective.rows[3]["prompt_ids"])
    assert detail.update[:, : prompt - 2].abs().sum() > 0
    read = objective.rows[3][f"{objective.sides[0]}_ids"]
    assert detail.output[0, -len(read) - 2 :].abs().sum() > 0


def test_queries_are_what_they_are_called_and_their_gradients_those_of_autograd(family):
    model = policy(family)
    parts, weights = lora_parts(model), weights_of_parts(lora_parts(model))
    pairs = tiny_pairs(3, seed=5)
    asked = [(pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]) for pair in pairs]

    def loglik(prompt, response):
        return likelihood(model, rows_for(model, [prompt], [response], EOS)).sums()[0]

    unit = torch.nn.functional.normalize(draw(D_MODEL), dim=0)

    def projection(prompt, response):
        rows = rows_for(model, [prompt], [response], EOS)
        places = rows["response_mask"].flatten().nonzero().squeeze(1)
        with record(model, (2,), places, stop=True) as recording:
            model(**model_inputs(rows), use_cache=False)
        return (recording.stack()[0] @ unit).mean()

    kinds = {
        "log-probability": (
            [log_probability("q", prompt, chosen) for prompt, chosen, _ in asked],
            {},
            lambda prompt, chosen, rejected: loglik(prompt, chosen),
        ),
        "margin": (
            [margin("q", *each) for each in asked],
            {},
            lambda prompt, chosen, rejected: loglik(prompt, chosen) - loglik(prompt, rejected),
        ),
        "projection": (
            [log_probability("q", prompt, chosen) for prompt, chosen, _ in asked],
            {"values": projections(Direction(2, unit))},
            lambda prompt, chosen, rejected: projection(prompt, chosen),
        ),
    }
    for name, (queries, how, value) in kinds.items():
        found = ask(model, parts, queries, EOS, 2, **how)
        functions = {
            f"{n}": (lambda _, given=each, value=value: value(*given))
            for n, each in enumerate(asked)
        }
        by_functions = ask_functions(model, parts, functions)
        for place, each in enumerate(asked):
            with exact_attention():
                expected = value(*each)
                gradient = torch.autograd.grad(expected, weights, allow_unused=True)
            both = zip(weights, gradient, strict=True)
            flat = torch.cat([(0 * w if g is None else g).flatten() for w, g in both])
            assert torch.allclose(found.values[place], expected, atol=1e-4), name
            assert torch.allclose(found.gradients[place], flat, atol=1e-3), name
        assert torch.allclose(by_functions.gradients, found.gradients, atol=1e-3), name
    with pytest.raises(ValueError, match="return one number"):
        ask_functions(model, parts, {"wrong": lambda _: torch.ones(2)})


def test_bm25_prefers_the_document_that_repeats_a_rare_term():
    documents = [[1, 2, 3], [1, 4, 4], [1, 1, 5]]
    found = bm25(documents, [[4], [9]])
    assert found[:, 0].argmax() == 1
    assert found[[0, 2], 0].tolist() == [0, 0]
    assert not found[:, 1].any()
    # By hand: idf log(1 + 2.5 / 1.5); two occurrences in a document of average length.
    assert found[1, 0].item() == pytest.approx(np.log(1 + 2.5 / 1.5) * 2 * 2.2 / 3.2)


def test_the_margin_and_the_similarity_are_those_of_the_pair_itself(family, tmp_path):
    objective = objective_of(family, "dpo", tmp_path)
    pair = objective.rows[2]
    queries = [log_probability("own", pair["prompt_ids"], pair["chosen_ids"])]
    found = baselines(objective.model, objective.rows, queries, EOS, 4)
    assert found.similarity[2, 0] == pytest.approx(1, abs=1e-5)
    assert found.similarity[:, 0].argmax() == 2
    asked = ask(
        objective.model,
        lora_parts(objective.model),
        [margin("m", pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"])],
        EOS,
        1,
    )
    assert found.margin[2] == pytest.approx(float(asked.values[0]), abs=1e-4)
    losses = objective.losses(objective.batch([2], whole=False), lambda values, _: values)
    assert torch.nn.functional.softplus(-0.5 * found.irm[2]) == pytest.approx(
        losses[0].item(), abs=1e-4
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [1, 4, 6])
def test_a_scoring_pass_sees_what_passes_of_the_rivals_find(family, tmp_path, packed, size):
    objective = objective_of(family, "dpo", tmp_path, packed=packed)
    model, parts = objective.model, lora_parts(objective.model)
    vectors = draw(2, parts[-1].stop)
    same = fit_curvature("identity", objective, parts, tmp_path, size)
    scores = score_pairs(objective, parts, vectors, vectors, same.solve_pairs, size)
    for found, expected in zip(scores.seen, see(model, objective.rows, EOS, 4), strict=True):
        assert torch.allclose(found, expected, atol=1e-4)
    losses = pair_losses(objective, "default", 4)
    assert torch.allclose(scores.losses, losses, atol=1e-5)
    expected = change_if_left_out(vectors, loop_gradients(objective), 6)
    assert (scores.changes - expected).abs().max() < 1e-4 * expected.abs().max()
    by_layer = scores.by_layer.sum(1)
    assert (by_layer >= scores.changes.abs().sum(0) * (1 - 1e-4)).all()


def test_losses_that_read_one_response_or_targets_leave_the_rivals_their_passes(family, tmp_path):
    for kind in ("positive", "dual"):
        objective = objective_of(family, kind, tmp_path)
        parts = lora_parts(objective.model)
        vectors = draw(1, parts[-1].stop)
        scores = score_pairs(objective, parts, vectors, vectors, lambda x: x, 4)
        assert scores.seen is None


def test_the_strongest_pairs_are_kept_as_a_full_sort_gives_them(monkeypatch):
    for pairs, count, block in ((1, 3, 4), (6, 3, 4), (7, 3, 1), (100, 5, 7), (100, 5, 200)):
        monkeypatch.setattr("rahf.influence.strongest.BLOCK", block)
        values = (draw(pairs, 4) * 8).round()  # with ties
        order = values.argsort(dim=0, stable=True).T
        if pairs > 2 * count:
            order = torch.cat([order[:, :count], order[:, -count:]], 1)
        assert torch.equal(strongest(values, count), order), (pairs, count, block)
    # However many pairs have been seen, only the ends are held.
    kept = Strongest(4, 5)
    for _ in range(50):
        kept.add(draw(100, 4))
    assert kept.seen == 5000
    assert kept.values.shape == kept.places.shape == (4, 10)


def test_ranks_are_those_of_a_full_sort_and_of_pairs_that_a_ranking_lacks_behind_all():
    values = draw(30)
    order = values.argsort(descending=True)
    assert ranks_of(values, order) == list(range(1, 31))
    values[order[:4]] = torch.nan
    assert ranks_of(values, order[[0, 3, 4, 29]]) == [27, 27, 1, 26]


def test_concentration_finds_a_planted_tail_and_refuses_a_thin_one():
    generator = np.random.default_rng(0)
    power = (1 - generator.random(4000)) ** (-1 / (2.5 - 1))
    tail = tail_of(power)
    assert tail.exponent == pytest.approx(2.5, abs=0.25)
    assert tail.p_value > 0.1
    assert tail_of(generator.random(8)) is None
    assert tail_of(np.zeros(50)) is None
    assert top_share(np.r_[np.ones(99), 901.0]) == pytest.approx(0.901)
    assert np.isnan(top_share(np.zeros(5)))


def test_a_hit_of_every_query_is_flagged_and_so_is_a_loud_pair():
    places = torch.tensor([[0, 1], [0, 2], [0, 3]])
    loud = torch.ones(100)
    loud[3] = 5
    flags = spurious_hits(places, loud)
    assert flags.tolist() == [[True, False], [True, False], [True, True]]
    assert not spurious_hits(places[:2], loud).any()
    # Lists that hold half of the pairs share most of them by chance.
    few = torch.stack([torch.arange(4) + start for start in (0, 1, 2)])
    assert not spurious_hits(few, torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 5])).any()
    assert spurious_hits(few, torch.ones(200))[0, 2:].all()
