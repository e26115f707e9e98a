"""Directions read from a model: samples against loops, fitters against properties, the command."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator, PartialState
from peft import PeftModel
from ranks import launched, run
from reference.objective import block_states, kl, log_probabilities
from reference.steering import logits_by_loops, some_directions
from tiny_models import D_MODEL, EOS, tiny_dataset, tiny_pairs

from rahf.cli import main
from rahf.directions.calibration import (
    REACHED,
    Calibration,
    NeutralText,
    choose,
    climb,
    solve_strength,
    strength_within,
    windows,
)
from rahf.directions.effect import candidates, effect_on_predictions
from rahf.directions.evidence import area_under_curve, fit, measure
from rahf.directions.fitters import FITTERS, Differences, MeanDifference
from rahf.directions.states import SIDES, Reader, Samples
from rahf.directions.steering import steer
from rahf.directions.vectors import Directions
from rahf.models.likelihood import preference_margins
from rahf.pipeline.inputs import load_base, load_tokenizer
from rahf.pipeline.inputs import test_rows as held_out_rows
from rahf.pipeline.run import run_pipeline
from rahf.recipe.files import checked_recipe
from rahf.trainer_config import RAHFConfig

LAYERS = (0, 1, 2)
SOURCES = ("responses", "instructions", "adapters")


def both_adapters(family):
    model = PeftModel.from_pretrained(
        family.load_base(), family.adapters["positive"], adapter_name="positive"
    )
    model.load_adapter(str(family.adapters["negative"]), adapter_name="negative")
    return model.eval()


def reader_of(family, source, tokens, max_tokens=4):
    model = both_adapters(family) if source == "adapters" else family.load_base()
    return Reader(model, source, tokens, LAYERS, EOS, max_tokens)


def states_by_loops(family, source, side, tokens, pairs, max_tokens=4):
    """Return per response [layers, samples, d_model], one row at a time."""
    who = SIDES[source][side]
    model = family.load(who.adapter)
    found = []
    for pair in pairs:
        for name in who.responses:
            prompt, response = pair[who.prompt], pair[name][:max_tokens]
            states = block_states(model, prompt + response, LAYERS)
            packed = torch.tensor([states[layer][len(prompt) :] for layer in LAYERS])
            found.append(
                {"last": packed[:, -1:], "mean": packed.mean(1, keepdim=True), "every": packed}[
                    tokens
                ]
            )
    return found


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("tokens", ["last", "mean", "every"])
def test_samples_are_the_states_of_single_rows(family, source, tokens):
    pairs = tiny_pairs(3)
    samples = reader_of(family, source, tokens)(pairs)
    sides = [states_by_loops(family, source, side, tokens, pairs) for side in (0, 1)]
    for side, states, weight in (
        (sides[0], samples.positive, samples.positive_weight),
        (sides[1], samples.negative, samples.negative_weight),
    ):
        torch.testing.assert_close(states, torch.cat(side, 1), atol=1e-5, rtol=1e-4)
        expected = [1 / part.shape[1] for part in side for _ in range(part.shape[1])]
        torch.testing.assert_close(weight, torch.tensor(expected))
    differences = torch.stack([p.mean(1) - n.mean(1) for p, n in zip(*sides, strict=True)]).mean(0)
    fitter = MeanDifference()
    fitter.update(samples)
    torch.testing.assert_close(fitter.vectors(), differences, atol=1e-5, rtol=1e-4)
    assert samples.pairs == len(sides[0])


def test_tokens_that_do_not_correspond_are_set_against_the_other_response(family):
    pairs = tiny_pairs(2)
    samples = reader_of(family, "responses", "every")(pairs)
    sides = [states_by_loops(family, "responses", side, "every", pairs) for side in (0, 1)]
    expected = [p - n.mean(1, keepdim=True) for p, n in zip(*sides, strict=True)]
    expected += [p.mean(1, keepdim=True) - n for p, n in zip(*sides, strict=True)]
    torch.testing.assert_close(samples.difference, torch.cat(expected, 1), atol=1e-5, rtol=1e-4)


def test_the_size_of_the_states_is_reported_per_token(family):
    pairs = tiny_pairs(3)
    samples = reader_of(family, "responses", "mean")(pairs)
    states = states_by_loops(family, "responses", 0, "every", pairs)
    states += states_by_loops(family, "responses", 1, "every", pairs)
    expected = torch.stack([part.square().sum(-1).mean(1) for part in states], 1)
    torch.testing.assert_close(samples.square, expected, atol=1e-4, rtol=1e-4)


def samples_of(positive, negative):
    """Return samples of paired states [pairs, d_model] of one layer."""
    ones = torch.ones(len(positive))
    return Samples(
        positive[None],
        ones,
        negative[None],
        ones,
        (positive - negative)[None],
        ones,
        torch.ones(1, len(positive)),
        ones,
    )


def shifts_of_responses():
    """Return per-token shifts [layers, tokens, d_model] of six responses of different lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, length, 4, generator=generator) for length in (1, 5, 2, 2, 7, 3)]


def mean_of(batches):
    """Return a fitter of the shifts of responses, the tokens of each with a weight of 1 in all."""
    fitter = MeanDifference()
    for batch in batches:
        weight = torch.cat([torch.full(part.shape[1:2], 1 / part.shape[1]) for part in batch])
        fitter.update(Differences(torch.cat(batch, 1), weight))
    return fitter


def test_the_mean_is_over_the_tokens_of_a_response_and_then_over_responses():
    responses = shifts_of_responses()
    expected = torch.stack([shift.mean(1) for shift in responses]).mean(0)
    fitter = mean_of([responses])
    assert torch.allclose(fitter.vectors(), expected, atol=1e-6)
    assert fitter.weight == pytest.approx(6)


def test_a_streaming_mean_equals_that_of_one_batch():
    responses = shifts_of_responses()
    whole = mean_of([responses]).vectors()
    for batches in ([responses[:1], responses[1:]], [[response] for response in responses[::-1]]):
        assert torch.allclose(mean_of(batches).vectors(), whole, atol=1e-6)


def test_adding_up_over_one_rank_changes_nothing():
    fitter = mean_of([shifts_of_responses()])
    before, weight = fitter.vectors(), fitter.weight
    Accelerator(cpu=True)  # states that there is one rank
    fitter.reduce()
    assert torch.equal(fitter.vectors(), before)
    assert fitter.weight == weight


def planted(count, seed=0, width=6):
    """Draw states of two sides that differ along axis 0, in noise that is largest along axis 1;
    what the sides of a pair share is along axis 2.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.5, 2.0, 0.5, 0.5, 0.5, 0.5])[:width]
    noise = torch.randn(2, count, width, generator=generator) * scale
    shared = torch.randn(count, 1, generator=generator) * torch.eye(width)[2] * 4
    gap = torch.eye(width)[0] * 0.8 + torch.eye(width)[1] * 0.8
    return noise[0] + shared + gap / 2 + 5, noise[1] + shared - gap / 2 + 5


def fitted(name, positive, negative, batch=16):
    fitter = FITTERS[name]()
    for start in range(0, len(positive), batch):
        fitter.update(samples_of(positive[start : start + batch], negative[start : start + batch]))
    return fitter.vectors()[0]


def cosine(first, second):
    return torch.nn.functional.cosine_similarity(first, second, dim=0).item()


@pytest.mark.parametrize("name", ["mean", "principal"])
def test_moments_do_not_depend_on_the_batches(name):
    sides = planted(40)
    whole = fitted(name, *sides, batch=40)
    torch.testing.assert_close(fitted(name, *sides, batch=7), whole, atol=1e-5, rtol=1e-4)
    flipped = [side.flip(0) for side in sides]
    torch.testing.assert_close(fitted(name, *flipped, batch=16), whole, atol=1e-5, rtol=1e-4)


def test_the_principal_difference_is_the_axis_of_the_largest_differences():
    positive, negative = planted(400)
    vector = fitted("principal", positive, negative)
    difference = positive - negative
    values, axes = torch.linalg.eigh(difference.T @ difference)
    assert values[-1] > values[-2]
    assert abs(cosine(vector, axes[:, -1])) == pytest.approx(1, abs=1e-4)
    # Sign and length are those of the mean difference along the axis.
    mean = difference.mean(0)
    torch.testing.assert_close(vector @ vector, mean @ vector)
    assert torch.allclose(fitted("principal", negative, positive), -vector, atol=1e-5)


def logistic_by_newton(positive, negative, prior, steps=30):
    """Fit the mode of the posterior of a logistic regression, by Newton steps on all samples at
    once.
    """
    states = torch.cat([positive, negative]).double()
    states = torch.cat([states, torch.ones(len(states), 1, dtype=torch.double)], 1)
    label = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).double()
    weight = torch.zeros(states.shape[1], dtype=torch.double)
    for _ in range(steps):
        probability = (states @ weight).sigmoid()
        gradient = states.T @ (label - probability) - weight / prior
        curvature = (states.T * (probability * (1 - probability))) @ states
        weight = weight + torch.linalg.solve(curvature + torch.diag(1 / prior), gradient)
    return weight[:-1].float()


def scaled_like_the_probe(positive, negative, first):
    """Return states in the units of the probe, which its first batch decides."""
    begin = torch.cat([positive[:first], negative[:first]])
    center = begin.mean(0)
    scale = (begin - center).square().mean().sqrt()
    return (positive - center) / scale, (negative - center) / scale


def test_the_probe_of_one_small_batch_is_the_logistic_regression():
    positive, negative = planted(30)
    width = positive.shape[1]
    prior = torch.tensor([9 / width] * width + [9.0]).double()
    expected = logistic_by_newton(*scaled_like_the_probe(positive, negative, 30), prior)
    assert cosine(fitted("probe", positive, negative, batch=30), expected) > 1 - 1e-5


def test_the_streaming_probe_comes_close_to_the_logistic_regression_of_everything():
    positive, negative = planted(600)
    width = positive.shape[1]
    prior = torch.tensor([9 / width] * width + [9.0]).double()
    expected = logistic_by_newton(*scaled_like_the_probe(positive, negative, 16), prior)
    assert cosine(fitted("probe", positive, negative, batch=16), expected) > 0.995


def test_the_probe_turns_away_from_the_noise_and_the_mean_does_not():
    positive, negative = planted(600)
    vectors = {name: fitted(name, positive, negative) for name in ("mean", "probe")}
    new_positive, new_negative = planted(600, seed=1)
    ones = torch.ones(600)
    areas = {
        name: area_under_curve(new_positive @ vector, ones, new_negative @ vector, ones)
        for name, vector in vectors.items()
    }
    assert areas["probe"] > areas["mean"] + 0.05


def test_the_probe_stays_finite_on_separable_states():
    positive = torch.randn(64, 6, generator=torch.Generator().manual_seed(2)) + 20
    vector = fitted("probe", positive, positive - 40)
    assert cosine(vector, torch.ones(6)) > 0.99


@pytest.mark.parametrize("name", FITTERS)
def test_samples_of_weight_zero_count_for_nothing(name):
    positive, negative = planted(24)
    whole = samples_of(positive, negative)
    padded = []
    for field, tensor in whole._asdict().items():
        axis = 1 if tensor.ndim > 1 else 0
        rest = torch.zeros_like(tensor.narrow(axis, 0, 5)) + (0 if "weight" in field else 7)
        padded.append(torch.cat([tensor, rest], axis))
    plain, with_padding = FITTERS[name](), FITTERS[name]()
    plain.update(whole)
    with_padding.update(Samples(*padded))
    torch.testing.assert_close(with_padding.vectors(), plain.vectors(), atol=1e-4, rtol=1e-3)
    assert Samples(*padded).pairs == 24


def test_the_area_under_the_curve_counts_pairs_of_scores():
    generator = torch.Generator().manual_seed(3)
    positive = torch.randint(0, 6, (17,), generator=generator).float()
    negative = torch.randint(-2, 4, (23,), generator=generator).float()
    weights = torch.rand(17, generator=generator), torch.rand(23, generator=generator)
    won = total = 0.0
    for p, pw in zip(positive.tolist(), weights[0].tolist(), strict=True):
        for n, nw in zip(negative.tolist(), weights[1].tolist(), strict=True):
            won += pw * nw * (1.0 if p > n else 0.5 if p == n else 0.0)
            total += pw * nw
    found = area_under_curve(positive, weights[0], negative, weights[1])
    assert math.isclose(found, won / total, rel_tol=1e-6)
    assert area_under_curve(negative, weights[1], positive, weights[0]) == pytest.approx(1 - found)


def fitted_on(family, pairs, **options):
    reader = reader_of(family, "responses", "mean")
    given = {"seed": 0, "batch_size": 3, "state": PartialState(cpu=True), **options}
    return fit(reader, pairs, tuple(FITTERS), **given)


def test_the_same_seed_gives_the_same_directions_and_halves(family):
    pairs = tiny_dataset(9)
    first, again, other = (fitted_on(family, pairs, seed=seed) for seed in (0, 0, 1))
    for name in FITTERS:
        assert torch.equal(first.vectors[name], again.vectors[name])
        assert torch.equal(first.halves[0][name], again.halves[0][name])
        assert not torch.equal(first.halves[0][name], other.halves[0][name])
    torch.testing.assert_close(first.vectors["mean"], other.vectors["mean"], atol=1e-5, rtol=1e-4)
    sides = [
        part
        for side in (0, 1)
        for part in states_by_loops(family, "responses", side, "every", list(pairs))
    ]
    square = torch.stack([part.square().sum(-1).mean(1) for part in sides]).mean(0)
    torch.testing.assert_close(first.rms, square.sqrt(), atol=1e-5, rtol=1e-4)
    # 9 pairs: halves of 5 and 4.
    whole = (5 * first.halves[0]["mean"] + 4 * first.halves[1]["mean"]) / 9
    torch.testing.assert_close(first.vectors["mean"], whole, atol=1e-5, rtol=1e-4)


def test_vectors_are_measured_on_the_projected_states_and_the_differences(family):
    pairs = tiny_dataset(6)
    vectors = {"any": torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(4))}
    reader = reader_of(family, "responses", "last")
    measured = measure(reader, pairs, vectors, batch_size=4, state=PartialState(cpu=True))
    sides = [
        torch.cat(states_by_loops(family, "responses", side, "last", list(pairs)), 1)
        for side in (0, 1)
    ]
    ones = torch.ones(6)
    for index in range(3):
        positive, negative = (side[index] @ vectors["any"][index] for side in sides)
        expected = area_under_curve(positive, ones, negative, ones)
        assert measured.separability["any"][index] == pytest.approx(expected)
        difference = (sides[0] - sides[1])[index]
        left = (difference - vectors["any"][index]).square().sum() / difference.square().sum()
        assert measured.explained["any"][index] == pytest.approx(1 - left.item(), rel=1e-4)
    square = torch.cat(sides, 1).square().sum(-1).mean(1)
    torch.testing.assert_close(measured.rms, square.sqrt(), atol=1e-5, rtol=1e-4)


def test_states_that_are_not_finite_are_an_error_that_names_the_row(family):
    reader = reader_of(family, "responses", "mean")
    pairs = tiny_pairs(3)
    with torch.no_grad():  # the only row that has this token
        reader.model.get_input_embeddings().weight[pairs[1]["prompt_ids"][0]] = math.nan
    rows = [{**pair, "row": f"r{index}"} for index, pair in enumerate(pairs)]
    told = [
        row["row"]
        for row in rows
        if pairs[1]["prompt_ids"][0] in row["prompt_ids"] + row["chosen_ids"]
    ]
    with pytest.raises(ValueError, match=f"row {told[0]}: its hidden states in layer 0 are not"):
        reader(rows)


def test_one_pair_is_too_few(family):
    with pytest.raises(ValueError, match=r"1 pairs cannot be split"):
        fitted_on(family, tiny_dataset(1))


def directions(recipe, *options):
    return main(["directions", str(recipe), *options])


def test_the_command_writes_directions_with_all_they_were_made_with(recipe_file, family, capsys):
    assert directions(recipe_file, "--fit", "probe", "--tokens", "last", "--layers", "1-2") == 0
    folder = Path("out/reading/responses")
    saved = Directions.load(folder)
    assert saved.layers == (1, 2)
    assert saved.metadata["model"] == str(family.base)
    assert saved.metadata["fit"] == "probe"
    assert saved.metadata["tokens"] == "last"
    assert saved.metadata["contrasts"] == "6"
    assert len(saved.metadata["data_sha256"]) == 64
    evidence = json.loads((folder / "evidence.json").read_text())
    assert list(evidence["separability"]) == ["probe", "mean", "principal"]
    norm = saved.vectors.norm(dim=-1) / torch.tensor(evidence["rms"])
    torch.testing.assert_close(torch.tensor(evidence["norm"]["probe"]), norm)
    assert (folder / "evidence.png").stat().st_size > 0
    table = capsys.readouterr().out
    assert "| layer | AUC probe" in table
    assert (folder / "evidence.md").read_text() in table


def test_without_a_test_split_every_fifth_row_is_held_out(recipe_file):
    options = ("--dataset_test_split", "null", "--test_share", "0", "--compare", "none")
    assert directions(recipe_file, *options) == 0
    made_with = json.loads(Path("out/reading/responses/evidence.json").read_text())["made_with"]
    assert (made_with["contrasts"], made_with["held_out_pairs"]) == ("5", 1)


def test_instructions_are_read_whatever_the_recipes_method(recipe_file):
    words = ("--instructions.positive", "w3 w4", "--instructions.negative", "w5 w6")
    assert directions(recipe_file, "--source", "instructions", *words) == 0
    # Both responses of six pairs under both instructions.
    metadata = Directions.load("out/reading/instructions").metadata
    assert metadata["contrasts"] == "12"


def test_an_adapter_is_set_against_another_or_against_the_base(recipe_file, family):
    sides = {name: str(family.adapters[name]) for name in ("positive", "negative")} | {
        "base": "base"
    }
    vectors = {}
    for first, second in (("positive", "negative"), ("positive", "base"), ("base", "negative")):
        options = ("--positive", sides[first], "--negative", sides[second])
        assert directions(recipe_file, "--source", "adapters", *options) == 0
        vectors[first, second] = Directions.load("out/reading/adapters").vectors
    whole = vectors["positive", "base"] + vectors["base", "negative"]
    torch.testing.assert_close(vectors["positive", "negative"], whole, atol=1e-5, rtol=1e-4)


def test_of_all_constants_the_mean_explains_most_of_an_adapters_states(family):
    pairs = tiny_dataset(8)
    reader = reader_of(family, "adapters", "every")
    given = {"batch_size": 4, "state": PartialState(cpu=True)}
    fitted = fit(reader, pairs, tuple(FITTERS), seed=0, **given)
    tried = {name: 0.7 * vectors for name, vectors in fitted.vectors.items()} | fitted.vectors
    explained = measure(reader, pairs, tried | {"longer": 1.2 * fitted.vectors["mean"]}, **given)
    mean = torch.tensor(explained.explained["mean"])
    assert (mean > 0).all()
    for name, shares in explained.explained.items():
        assert name == "mean" or (torch.tensor(shares) < mean).all()


class SteeredReader(Reader):
    """Its positive side predicts what the base does when a vector is added."""

    shift = Directions(
        (1,), 2 * torch.randn(1, D_MODEL, generator=torch.Generator().manual_seed(7))
    )

    def speaking(self, adapter):
        return steer(self.model, self.shift, 1.0 if adapter == "positive" else 0.0)


def test_a_constant_explains_all_of_an_effect_that_is_one(family):
    reader = SteeredReader(family.load_base(), "adapters", "every", LAYERS, EOS, 4)
    pairs = tiny_pairs(3)
    with torch.no_grad():
        samples = reader(pairs)
    fitter = MeanDifference()
    fitter.update(samples)
    found = Directions(LAYERS, fitter.vectors())
    assert torch.allclose(found.only((1,)).vectors, SteeredReader.shift.vectors, atol=1e-4)
    effect = effect_on_predictions(reader, pairs, candidates(found), batch_size=2)
    assert effect.whole > 0.01
    explained = effect.explained()
    # The prompt's own states were shifted too, by the reader and not by the candidate.
    assert explained["layer 0"] == pytest.approx(0, abs=1e-6)
    assert explained["layer 1"] > 0.5


def test_the_effect_is_the_divergence_of_single_rows(family):
    reader = reader_of(family, "adapters", "every")
    pairs, chosen = tiny_pairs(2), some_directions()
    effect = effect_on_predictions(reader, pairs, {"it": chosen}, batch_size=1)
    whole, left = [], []
    models = {name: family.load(name) for name in ("positive", "negative")}
    for pair in pairs:
        for name in ("chosen_ids", "rejected_ids"):
            prompt, response = pair["prompt_ids"], pair[name][:4]
            predicted = range(len(prompt), len(prompt) + len(response))
            said = [log_probabilities(models[side], prompt + response) for side in models]
            whole.append(kl(*said, predicted))
            edits = [(chosen, 1.0)]
            steered = logits_by_loops(
                models["negative"], prompt + response, edits, start=len(prompt) - 1
            )
            left.append(kl(said[0], steered.log_softmax(-1).tolist(), predicted))
    assert effect.whole == pytest.approx(sum(whole) / 4, rel=1e-3)
    assert effect.left["it"] == pytest.approx(sum(left) / 4, rel=1e-3)
    assert effect.explained()["it"] == pytest.approx(1 - sum(left) / sum(whole), rel=1e-3)


def test_the_command_reports_the_effect_of_an_adapter(recipe_file, family, capsys):
    sides = ("--positive", str(family.adapters["positive"]), "--negative", "base")
    assert directions(recipe_file, "--source", "adapters", *sides, "--effect", "1-2") == 0
    told = capsys.readouterr().out
    assert "| all together | " in told
    evidence = json.loads(Path("out/reading/adapters/evidence.json").read_text())
    assert list(evidence["effect"]["explained"]) == ["layer 1", "layer 2", "all together"]
    assert directions(recipe_file, "--effect", "1-2") == 2
    assert "needs --source adapters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no positive adapter: out/teachers/positive does not exist"),
        (("--positive", "base", "--negative", "base"), "both sides are base"),
    ],
)
def test_adapters_that_cannot_be_compared_are_refused(recipe_file, capsys, options, message):
    assert directions(recipe_file, "--source", "adapters", *options) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_fit_is_refused_with_the_known_ones(recipe_file, capsys):
    with pytest.raises(SystemExit):
        directions(recipe_file, "--compare", "mean,pca")
    assert "'pca' is not one of mean, principal, probe" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_give_the_directions_of_one_process(recipe_file):
    # Six rows in batches of four, and a last batch that leaves the second rank without a share.
    options = (str(recipe_file), "--fit", "probe", "--tokens", "every")
    one = ("--output", "one", "--per_device_train_batch_size", "4")
    two = ("--output", "two", "--per_device_train_batch_size", "2")
    run(sys.executable, "-m", "rahf", "directions", *options, *one)
    told = launched("ddp_cpu.yaml", "tests/distributed/directions_and_report.py", *options, *two)
    assert "engine MULTI_CPU world 2" in told
    assert told.count("| layer |") == 1
    first, second = (json.loads(Path(name, "evidence.json").read_text()) for name in ("one", "two"))
    assert first["made_with"]["contrasts"] == second["made_with"]["contrasts"] == "6"
    for key in ("separability", "halves", "agreement", "norm"):
        for name, values in first[key].items():
            assert second[key][name] == pytest.approx(values, abs=1e-4)
    torch.testing.assert_close(
        Directions.load("two").vectors, Directions.load("one").vectors, atol=1e-5, rtol=1e-3
    )


def test_windows_cover_the_depth_and_stay_in_it():
    assert windows(30) == [
        tuple(range(6, 15)),
        tuple(range(10, 20)),
        tuple(range(14, 24)),
        tuple(range(19, 29)),
    ]
    for depth in (1, 2, 4, 7, 80):
        assert all(0 <= each[0] <= each[-1] < depth for each in windows(depth))
        assert len(set(windows(depth))) == len(windows(depth))


@pytest.mark.parametrize(
    ("divergence", "steps"),
    [
        (lambda alpha: 0.3 * alpha**2, 6),
        (lambda alpha: 0.01 * alpha**2, 6),
        (lambda alpha: 5 * alpha / (1 + alpha), 6),
        (lambda alpha: 0.2 * alpha**3, 6),
        # The search begins on a plateau.
        (lambda alpha: -0.6 * math.expm1(-((8 * alpha) ** 2)), 12),
        (lambda alpha: 0.1 if alpha < 3 else 0.1 * (alpha - 2) ** 6, 12),
    ],
)
def test_a_strength_is_found_that_meets_the_budget(divergence, steps):
    asked = []
    alpha, found = solve_strength(lambda a: asked.append(a) or divergence(a), 0.5, 1.0)
    assert found == divergence(alpha) == pytest.approx(0.5, rel=0.1)
    assert len(asked) <= steps


@pytest.mark.parametrize(
    ("heights", "top", "seen"),
    [
        ([5], 0, {0}),
        ([5, 7], 1, {0, 1}),
        ([7, 5], 0, {0, 1}),
        ([1, 2, 3, 4], 3, {1, 2, 3}),
        ([1, 2, 5, 4], 2, {1, 2, 3}),
        ([9, 8, 3, 4], 0, {0, 1, 2, 3}),
        ([9, 3, 3, 3], 2, {1, 2, 3}),  # level ground: stay, a rise beyond it is not seen
    ],
)
def test_the_climb_ends_at_a_place_that_no_neighbour_exceeds(heights, top, seen):
    asked = set()
    assert climb(lambda place: asked.add(place) or heights[place], range(len(heights))) == top
    assert asked == seen


def calibration_of(family):
    pairs = tiny_pairs(4)
    return Calibration(family.load_base(), pairs, [[2, 3, 4, 5], [6, 7, 8]], EOS)


def test_the_divergence_is_that_of_the_neutral_tokens_under_steering(family):
    calibration, chosen = calibration_of(family), some_directions()
    found = calibration.divergence(chosen, 0.7)
    model, per_text = family.load_base(), []
    for text in ([2, 3, 4, 5], [6, 7, 8]):
        steered = logits_by_loops(model, text, [(chosen.increments(), 0.7)])
        plain = log_probabilities(model, text)
        per_text.append(kl(plain, steered.log_softmax(-1).tolist(), range(1, len(text))))
    assert found == pytest.approx(sum(per_text) / 2, rel=1e-3)


def test_the_window_that_gains_most_at_equal_divergence_is_taken(family):
    calibration = calibration_of(family)
    vectors = torch.randn(4, D_MODEL, generator=torch.Generator().manual_seed(3))
    found = Directions((0, 1, 2, 3), vectors)
    areas, rms = torch.tensor([0.9, 0.95, 0.9, 0.5]), torch.full((4,), 10.0)
    tried = [(0, 1), (1, 2), (3,)]  # begins at the second of those that are likely
    choice = choose(calibration, found, areas, rms, tried, alpha=None, budget=0.1)
    first, second, unlikely = choice.candidates
    # Its layers separate the sides no better than chance: nothing is run for it.
    assert unlikely.margin_gain is None
    for each in (first, second):
        assert each.divergence == pytest.approx(0.1, rel=0.1)
        part = found.only(each.layers)
        made = REACHED * each.alpha
        assert each.divergence == pytest.approx(calibration.divergence(part, made), rel=1e-4)
        assert each.margin_gain == pytest.approx(calibration.gain(part, made), abs=1e-6)
        share = each.alpha * part.vectors.norm(dim=-1).mean().item() / 10
        assert each.share_of_rms == pytest.approx(share, rel=1e-4)
    assert choice.taken.margin_gain == max(first.margin_gain, second.margin_gain)
    fixed = choose(calibration, found, areas, rms, tried[:1], alpha=-0.4, budget=0.1)
    assert fixed.taken.alpha == -0.4
    assert fixed.taken.margin_gain == pytest.approx(
        calibration.gain(found.only((0, 1)), -0.4 * REACHED), abs=1e-6
    )
    assert choice.solved
    assert not fixed.solved


@pytest.mark.parametrize(
    "given",
    [
        ("--alpha", "auto", "--target_layers", "auto"),
        ("--alpha", "auto", "--shift", "mean"),
        ("--target_layers", "auto"),
        ("--alpha", "auto", "--retain_dataset_name", "texts.jsonl"),
    ],
)
def test_a_recipe_may_leave_layers_and_strength_to_the_data(recipe_file, capsys, given):
    options = ("--evaluation.models", "[policy]", *given)
    assert main(["align", str(recipe_file), *options]) == 0
    assert "chosen: layers" in capsys.readouterr().out
    taken = json.loads(Path("out/choice/choice.json").read_text())["taken"]
    as_run = yaml.safe_load(Path("out/recipe.yaml").read_text())
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert ("choice/divergence" in metrics) == ("alpha" in given[0::2][0])
    assert as_run["alpha"] == taken["alpha"]
    assert as_run["target_layers"] == taken["layers"]
    assert "alpha" in given[0::2][0] or taken["alpha"] == 4.0
    if as_run["shift"] == "mean":
        # The shift that was compared is aligned to; it is not fitted a second time.
        aligned, compared = (
            Directions.load(Path("out", name)) for name in ("directions", "choice")
        )
        assert aligned.layers == tuple(taken["layers"])
        assert aligned.fingerprint() == compared.fingerprint()
    assert main(["align", str(recipe_file), *options]) == 0
    assert "choice: complete" in capsys.readouterr().out


@pytest.mark.parametrize("power", [1.0, 1.7, 2.0])
def test_an_adapter_within_the_budget_is_left_alone_and_another_scaled_back_to_it(power):
    def divergence(strength):
        return 0.8 * strength**power

    assert strength_within(divergence, 0.8) == (1.0, 0.8)
    strength, found = strength_within(divergence, 0.2)
    assert 0 < strength < 1
    assert found == divergence(strength)
    assert 0.9 * 0.2 < found <= 0.2


def test_a_policy_above_the_budget_of_its_alpha_is_saved_scaled_back(recipe_file, capsys):
    # Many steps at a high rate for a tiny budget: training makes far more than was foreseen.
    options = {"alpha": "auto", "kl_budget": 1e-4, "max_steps": 12, "learning_rate": 3e-2}
    recipe = checked_recipe(recipe_file, {**options, "evaluation.models": ["policy"]})
    run_pipeline(recipe, quiet=True)
    printed = capsys.readouterr().out
    assert "budget 0.0001; the adapter is scaled by" in printed
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert 0 < metrics["choice/strength"] < 1
    assert metrics["choice/divergence"] <= 1e-4

    base = load_base(recipe)
    neutral = json.loads(Path("out/choice/choice.json").read_text())["neutral"]
    measured = NeutralText(base, neutral, EOS)
    policy = PeftModel.from_pretrained(base, "out").eval()
    measured.model = policy
    assert measured.divergence() == pytest.approx(metrics["choice/divergence"], rel=1e-3)
    # What the training has measured on the held-out pairs is what the saved policy does.
    held_out = held_out_rows(recipe, load_tokenizer(recipe))
    margins = preference_margins(policy, held_out, EOS)
    assert margins.mean().item() == pytest.approx(metrics["eval_preference/margins"], abs=1e-5)


def test_a_trainer_takes_no_auto():
    with pytest.raises(ValueError, match="give a number and layers here"):
        RAHFConfig("out", alpha="auto", use_cpu=True)
